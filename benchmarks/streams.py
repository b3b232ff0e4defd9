"""What large data costs: many images, large ones, a stream longer than memory, many short texts.

    python -m benchmarks.streams --what images --count 10000    # two starts of `loopax train vae`
    python -m benchmarks.streams --what stream --gib 1 --plot docs/pictures/stream-memory.png
    python -m benchmarks.streams --what texts --count 100000    # tokenised, and opened again
    python -m benchmarks.streams --what buckets                 # steps a dispatch on real lengths
    python -m benchmarks.streams --what large --count 2000      # 256 x 256, from training to export

All is generated (images of noise, texts of words by chance), but for the lengths of `buckets`,
which are those of Rotten Tomatoes. Memory is what Linux calls resident, of the process alone;
`anonymous` leaves out the pages of mapped files, which the kernel takes back when it needs them.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

MIB, GIB = 2**20, 2**30
SHAPE = (64, 64, 3)
TEXT_LENGTHS, VOCABULARY = (4, 24), 2000


class Memory:
    """The memory of a process over time, by `/proc`: seconds, resident and anonymous MiB."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self._pid, self._every, self._done = pid, every, threading.Event()
        self.samples: list[tuple[float, float, float]] = []
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            try:
                status = Path(f"/proc/{self._pid}/status").read_text()
            except OSError:
                return
            found = dict(line.split(":", 1) for line in status.splitlines())
            if "VmRSS" in found:
                sizes = (int(found[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon"))
                self.samples.append((time.monotonic() - self._begun, *sizes))

    @property
    def peak(self) -> str:
        resident, anonymous = (max(each) for each in list(zip(*self.samples, strict=True))[1:])
        return f"at most {resident:,.0f} MiB resident, {anonymous:,.0f} MiB anonymous"


def write_images(folder: Path, count: int, together: int = 10_000) -> None:
    """Parquet as Hugging Face stores images: shards of PNGs and labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    shards = -(-count // together)
    for shard in range(shards):
        rows = range(shard * together, min(count, (shard + 1) * together))
        cells = []
        for _ in rows:
            png = io.BytesIO()
            coarse = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(coarse + rng.integers(0, 8, SHAPE, np.uint8)).save(png, "PNG")
            cells.append({"bytes": png.getvalue(), "path": None})
        table = pa.table({"image": cells, "label": [row % 10 for row in rows]})
        pq.write_table(table, folder / f"train-{shard:05}-of-{shards:05}.parquet")


def images(count: int, steps: int) -> None:
    """The first and the second start of `loopax train vae`, each until its first row is logged."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        begun = time.monotonic()
        write_images(folder / "images", count)
        print(f"{count:,} images of 64 x 64 written in {time.monotonic() - begun:.0f} s")
        environment = os.environ | {"LOOPAX_CACHE": str(folder / "cache")}
        for start in ("first", "second"):
            run = folder / start
            words = ["train", "vae", "--data", str(folder / "images"), "--preset", "conv"]
            words += ["--run-dir", str(run), "--log-every", str(steps)]
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "loopax", *words],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            log = run / "metrics.jsonl"
            with Memory(process.pid) as memory:
                while process.poll() is None and not (log.exists() and log.stat().st_size):
                    time.sleep(0.1)
            seconds = time.monotonic() - begun
            if process.poll() is not None:
                raise SystemExit(f"{start} start: {(process.communicate()[1] or '').strip()}")
            process.kill()
            process.wait()
            print(f"{start} start: {steps} steps after {seconds:.1f} s, {memory.peak}")


def large(count: int) -> None:
    """One pass of `loopax train vae` over images of 256 x 256, measured, and what follows it."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pixels = rng.integers(0, 256, (count, 8, 8, 3), np.uint8).repeat(32, 1).repeat(32, 2)
        np.savez(folder / "images.npz", image=pixels, label=np.arange(count) % 10)
        del pixels
        train = ["train", "vae", "--data", str(folder / "images.npz"), "--preset", "conv"]
        train += ["--epochs", "1", "--run-dir", str(folder / "run")]
        environment = os.environ | {"LOOPAX_CACHE": str(folder / "cache")}
        for words in (train, *([what, str(folder / "run")] for what in ("sample", "export"))):
            begun = time.monotonic()
            command = [sys.executable, "-m", "loopax", *words]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            with Memory(process.pid) as memory:
                status = process.wait()
            print(f"{words[0]}: status {status}, {time.monotonic() - begun:.0f} s, {memory.peak}")


def stream(gib: float, plot: Path | None) -> None:
    """A stream of images that no memory holds, trained on by a small convolutional VAE.

    They are float32, as many pipelines give them, so that a gibibyte takes a minute and not five.
    """
    import jax
    import optax

    import loopax
    from loopax.models.vae import VAE

    batch = 64
    nbytes = 4 * batch * int(np.prod(SHAPE))
    total = int(gib * GIB / nbytes)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        while True:
            yield {"image": rng.random((batch, *SHAPE), np.float32)}

    model = VAE(SHAPE, classes=1, latent=32, widths=(8, 16, 16), network="conv", output="sigmoid")
    label = np.zeros(batch, np.int32)
    example = np.zeros((1, *SHAPE), np.float32), label[:1]
    state = loopax.TrainState.create(model, example, optax.adam(1e-3))

    def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
        image = batch["image"]
        output, mean, logvar = model.apply(params, image, label, rngs={"noise": rngs["noise"]})
        kl = 0.5 * (mean**2 + jax.numpy.exp(logvar) - 1 - logvar).sum()
        return (optax.l2_loss(output, image).sum() + kl) / len(image)

    with tempfile.TemporaryDirectory() as scratch, Memory(os.getpid(), 1.0) as memory:
        run = loopax.fit(state, loss_fn, batches(), steps=total, run_dir=scratch, progress=False)
        account = json.loads((Path(scratch) / "account.json").read_text())
    trained = account["wall_s"] - account["setup_s"] - account["compile_s"]
    late = [sample for sample in memory.samples if sample[0] > memory.samples[-1][0] / 2]
    grown = late[-1][2] - late[0][2]
    print(
        f"{run.step * nbytes / GIB:.1f} GiB in {run.step:,} steps, {trained:.0f} s; waited for "
        f"data {100 * account['data_s'] / trained:.1f} % of it; {memory.peak}; {grown:+,.0f} MiB "
        "in the second half"
    )
    if plot is not None:
        draw(memory, plot)


def draw(memory: Memory, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    seconds, resident, anonymous = zip(*memory.samples, strict=True)
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(seconds, resident, label="resident")
    axes.plot(seconds, anonymous, label="anonymous")
    axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def texts(count: int) -> None:
    """Texts of a CSV file, split and tokenised as `loopax train bert` does it, twice."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, rng = Path(scratch), np.random.default_rng(0)
        words = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{i}" for i in range(VOCABULARY)]
        with (folder / "texts.csv").open("w") as file:
            file.write("text,label\n")
            for index, length in enumerate(rng.integers(*TEXT_LENGTHS, count)):
                chosen = rng.integers(0, VOCABULARY, length)
                file.write(f"{' '.join(words[each] for each in chosen)},{index % 2}\n")
        environment = os.environ | {"LOOPAX_CACHE": str(folder / "cache")}
        program = (
            "import sys; from loopax.recipes import bert; from loopax.recipes.bert import problem;"
            "p = problem.Problem.of(bert.FineTuneConfig(data=sys.argv[1], model=sys.argv[2]));"
            "print(p.batches.steps_per_epoch, p.batches.identity['data'][:8])"
        )
        model = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-bert"
        for start in ("first", "second"):
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(folder / "texts.csv"), str(model)],
                env=environment,
            )
            with Memory(process.pid) as memory:
                process.wait()
            seconds = time.monotonic() - begun
            print(f"{start} time: {count:,} texts in {seconds:.1f} s, {memory.peak}")


def buckets(batch: int = 32) -> None:
    """Steps a dispatch on the lengths of Rotten Tomatoes, one sentence a text and six."""
    from loopax.caches import cache_dir
    from loopax.data import BucketedBatches, Dataset, catalogue, read_texts

    rows = read_texts(catalogue.located("rotten-tomatoes", cache_dir())).rows
    # A word is some 1.3 tokens of BERT's; two frame the text.
    sentences = np.array([2 + int(1.3 * len(text.split())) for (text,) in rows])
    for many in (1, 6):
        full = sentences[: len(sentences) // many * many].reshape(-1, many).sum(1)
        lengths = np.minimum(full, 512).astype(np.int32)
        ids = np.zeros((len(lengths), lengths.max()), np.int32)
        data = Dataset({"input_ids": ids, "length": lengths})
        for in_a_row in (1, None):
            source = BucketedBatches(data, batch, cut=["input_ids"], in_a_row=in_a_row)
            feed, takes, steps = source.feed([0], 0, 50), 0, 0
            while steps < 10 * source.steps_per_epoch:
                steps, takes = steps + feed.take(50).length, takes + 1
            print(
                f"{len(lengths):,} texts, buckets {source.buckets}, runs of {source.in_a_row}: "
                f"{steps / takes:.1f} steps a dispatch"
            )


def main(
    what: Literal["images", "stream", "texts", "buckets", "large"],
    count: int = 10_000,
    steps: int = 10,
    gib: float = 1.0,
    plot: Path | None = None,
) -> None:
    if what == "images":
        images(count, steps)
    elif what == "stream":
        stream(gib, plot)
    elif what == "texts":
        texts(count)
    elif what == "large":
        large(count)
    else:
        buckets()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
