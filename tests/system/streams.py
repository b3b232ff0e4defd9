"""Kills runs while processes read for them, and compares the examples with those of a whole run.

    python -m tests.system.streams --kills 3
    python -m tests.system.streams --only "Grain's map" --seed 1

Each row of `metrics.jsonl` has the examples of one step, so the files are equal byte for byte when
the sequence is. After each death no process that loopax started may be left; those that Grain and
torch start by themselves are counted, and ended here: Grain's wait for ever after a kill.
"""

import argparse
import contextlib
import functools
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import compiled
from tests.system.processes import Process

STEPS, BATCH, EXAMPLES = 120, 4, 100
"""25 batches an epoch, so that a run has nearly five of them."""
PAUSE_SECONDS = 0.01
"""That a batch takes to be read: the run is to be there when it is killed."""
PATIENCE = 30.0
"""Seconds in which the processes of a run end after it."""
ENDS_WITH = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 128 + signal.SIGINT, None: 0}
"""The status after each signal, where the run had not come to its end."""


# --- What is read -------------------------------------------------------------


def example(number):
    time.sleep(PAUSE_SECONDS / BATCH)
    return {"index": np.float32(number)}


def grain_map(workers=0):
    import grain

    import loopax

    numbers = _of_grain(grain.MapDataset.source(range(EXAMPLES)))
    return loopax.data.IterableBatches(numbers, workers=workers)


def grain_iter():
    import grain

    stream = _of_grain(grain.MapDataset.source(range(EXAMPLES))).repeat().to_iter_dataset()
    return stream.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=2))


def grain_loader():
    import grain

    class Example(grain.transforms.Map):
        def map(self, number):
            return example(number)

    return grain.DataLoader(
        data_source=range(EXAMPLES),
        sampler=grain.samplers.IndexSampler(EXAMPLES, shuffle=True, seed=1, num_epochs=3),
        operations=[Example(), grain.transforms.Batch(BATCH, drop_remainder=True)],
        worker_count=2,
    )


def rows_by_grain():
    import grain

    import loopax

    rows = _rows().with_format("numpy")
    return loopax.data.IterableBatches(_of_grain(grain.MapDataset.source(rows)), workers=2)


def rows():
    return _rows().shuffle(seed=1).batch(BATCH)


def stream_of_rows():
    return _rows().to_iterable_dataset(num_shards=4).map(example_of_row).batch(BATCH)


def shuffled_stream_of_rows():
    stream = _rows().to_iterable_dataset(num_shards=4).map(example_of_row)
    return stream.shuffle(seed=1, buffer_size=16).batch(BATCH)


def torch_loader():
    from torch.utils.data import DataLoader

    return _of_torch(DataLoader)


def stateful_torch_loader():
    from torchdata.stateful_dataloader import StatefulDataLoader

    return _of_torch(StatefulDataLoader)


SOURCES = {
    "Grain's map": grain_map,
    "Grain's map by processes": functools.partial(grain_map, 2),
    "Grain's iter": grain_iter,
    "Grain's loader": grain_loader,
    "rows of datasets by Grain": rows_by_grain,
    "rows of datasets": rows,
    "a stream of datasets": stream_of_rows,
    "a shuffled stream of datasets": shuffled_stream_of_rows,
    "torch's loader": torch_loader,
    "torchdata's loader": stateful_torch_loader,
}
OURS = "Grain's map by processes", "rows of datasets by Grain"
"""Sources whose processes loopax starts: what others start may outlive a kill, and complain."""


def example_of_row(row):
    return example(row["index"])


def _of_grain(numbers):
    return numbers.shuffle(seed=1).map(_as_example).batch(BATCH, drop_remainder=True)


def _as_example(found):
    return example_of_row(found) if isinstance(found, dict) else example(found)


def _rows():
    import datasets

    return datasets.Dataset.from_dict({"index": [float(number) for number in range(EXAMPLES)]})


class _Examples:
    def __len__(self):
        return EXAMPLES

    def __getitem__(self, number):
        return example(number)


def _of_torch(loader):
    import torch

    generator = torch.Generator().manual_seed(1)
    return loader(_Examples(), BATCH, shuffle=True, num_workers=2, generator=generator)


# --- What is trained ----------------------------------------------------------


def train(name, run_dir):
    """Trains on a source to the end; the examples of each step are its metrics."""
    import jax.numpy as jnp
    import optax

    import loopax

    def loss_fn(params, batch, rngs):
        index = batch["index"].astype(jnp.float32)
        seen = {f"example_{place}": index[place] for place in range(BATCH)}
        return ((params["w"] - index) ** 2).mean(), seen

    loopax.fit(
        loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.01)),
        loss_fn,
        SOURCES[name](),
        steps=STEPS,
        run_dir=run_dir,
        log_every=1,
        probe_every=None,
        chunk_steps=3,
        checkpoints=loopax.Checkpoints(every=15, seconds=None, keep=1),
    )


def rows_in(run_dir):
    with contextlib.suppress(FileNotFoundError):
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def left_of(process, patience):
    """Processes that a run has started and that outlive it for so many seconds; they are ended."""
    end = time.monotonic() + patience
    while (found := _of_session(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _of_session(session):
    """Processes of a session, but for the one that began it, and those that are dead already."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, its, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(its) == session != int(entry.name) and state not in "ZX":
                found.append(int(entry.name))
    return found


def killed(name, run_dir, numbers, draw):
    """Trains on a source, a life for each signal that ends one, and a last one to the end.

    Returns:
        what was wrong, and how many processes were left.
    """
    problems, orphans = [], 0
    for life, number in enumerate([*numbers, None]):
        been, log = rows_in(run_dir), run_dir.with_name(f"{run_dir.name}-{life}")
        with Process(train, name, run_dir, log=log) as process:
            if number is not None and been < STEPS - 12:
                wanted = draw.randrange(been + 1, STEPS - 10)
                process.wait_for(lambda n=wanted: rows_in(run_dir) >= n, f"{wanted} rows")
                if number == signal.SIGINT:  # as a terminal sends it: to all of the session
                    os.killpg(process.pid, number)
                else:
                    process.send(number)
            code = process.wait()
        left = left_of(process, patience=PATIENCE if name in OURS else 0)
        orphans += len(left)
        is_untidy = name in OURS and (left or "Traceback" in process.said)
        if code not in (0, ENDS_WITH[number]) or is_untidy:
            problems.append(
                f"life {life} ended with {code}, left {len(left)} processes, and said "
                f"{process.said[-1500:]}"
            )
    return problems, orphans


def differences(whole, pieces):
    """Where the rows of one run are not those of the other."""
    both = ((each / "metrics.jsonl").read_text().splitlines() for each in (whole, pieces))
    pairs = enumerate(itertools.zip_longest(*both))
    return [f"row {row}: {a}, and in pieces {b}" for row, (a, b) in pairs if a != b][:1]


def compared(name, home, kills, seed):
    """What is wrong with a source, and how many processes its deaths have left."""
    whole, pieces = home / "whole", home / "pieces"
    with Process(train, name, whole, log=whole) as process:
        assert process.wait() == 0, process.said
    numbers = [signal.SIGKILL] * kills + [signal.SIGINT]
    problems, orphans = killed(name, pieces, numbers, random.Random(seed))
    return problems + differences(whole, pieces), orphans


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.system.streams", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=2, help="of each source, before a Ctrl-C")
    parser.add_argument("--only", choices=[*SOURCES])
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="loopax-streams-") as temporary:
        compiled.share(Path(temporary) / "compiled")
        for name in [words.only] if words.only else SOURCES:
            home = Path(temporary) / name.replace(" ", "-")
            home.mkdir()
            problems, orphans = compared(name, home, words.kills, words.seed)
            wrong += len(problems)
            print(f"{name}: {len(problems)} problems, {orphans} processes were left")
            print("\n".join(problems), end="\n" if problems else "", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
