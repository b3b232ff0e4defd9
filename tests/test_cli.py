"""The command line as a person types it: help at once, mistakes in one line, status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest

from loopax.cli import main


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A hundred tiny images of two classes as an .npz file."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    generator = np.random.default_rng(0)
    label = np.arange(100) % 2
    image = (generator.random((100, 6, 5)) * 100 + 150 * label[:, None, None]).astype(np.uint8)
    np.savez(path, image=image, label=label)
    return path


SMALL = ["--epochs", "2", "--batch-size", "10", "--widths", "8", "--latent", "2"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run on those images."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "vae", "--data", str(images), "--run-dir", str(directory), *SMALL]
    assert main(words) == 0
    return directory


def test_help_and_import_do_not_load_jax():
    program = (
        "import sys, loopax, loopax.cli\n"
        "try: loopax.cli.main(['train', 'vae', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--optimizer.learning-rate" in done.stdout


def test_a_run_leaves_pictures_table_and_records(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "timing.jsonl",
        "account.json",
        "results.json",
        "pictures/samples.png",
        "pictures/reconstructions.png",
        "pictures/curves.png",
        "pictures/samples-epoch-001.png",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"train", "test"}
    start = json.loads((run / "run.json").read_text())["starts"][0]
    assert start["packages"]["jax"]
    assert start["devices"]
    assert len(start["data"]["data"]) == 64


def test_training_a_finished_run_again_says_so_and_changes_nothing(run, images, capfd):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "vae", "--data", str(images), "--run-dir", str(run), *SMALL]) == 0
    shown = capfd.readouterr()
    assert "finished, 18 of 18 steps" in shown.err
    assert "objective" in shown.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_sample_reconstruct_evaluate_and_runs_work_on_the_run(run, tmp_path, capsys):
    from PIL import Image

    assert (
        main(["sample", str(run), "--class", "1", "--count", "3", "--out", str(tmp_path / "s.png")])
        == 0
    )
    assert Image.open(tmp_path / "s.png").size == (2 * (3 * 7 + 2), 2 * (8 + 2))
    assert main(["sample", str(run), "--checkpoint", "best", "--out", str(tmp_path / "t.png")]) == 0
    assert main(["reconstruct", str(run), "--out", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").stat().st_size > 0
    capsys.readouterr()
    before = json.loads((run / "results.json").read_text())
    assert main(["evaluate", str(run)]) == 0
    assert "squared error per pixel" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text()) == before
    assert main(["runs", str(run.parent)]) == 0
    assert "tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("frobnicate", ["'frobnicate'", "train"]),
        ("train", None),
        ("train veo", ["'veo'", "vae"]),
        ("train vae --epcohs 3", ["--epcohs"]),
        ("train vae --epochs", ["--epochs"]),
        ("train vae --epochs many", ["--epochs", "'many'"]),
        ("train vae --preset narrow", ["'narrow'", "wide"]),
        ("train vae --batch-size -1", ["batch_size", "-1"]),
        ("train vae --batch-size 0", ["batch_size", "0"]),
        ("train vae --data IMAGES --batch-size 1000", ["batch_size", "1000", "90"]),
        ("train vae --optimizer.learning-rate 0", ["learning_rate", "0"]),
        ("train vae --data IMAGES --batch-size 9 --optimizer.name adamm", ["'adamm'", "adam"]),
        ("train vae --data IMAGES --batch-size 9 --optimizer.freeze nowhere", ["'nowhere'"]),
        ("train vae --data IMAGES --batch-size 9 --run-dir /dev/null/run", ["/dev/null/run"]),
        (
            "train vae --data IMAGES --epochs 3 --batch-size 10 --widths 8 --run-dir RUN",
            ["epochs = 2, not 3"],
        ),
        ("train vae --data IMAGES --batch-size 9 --run-dir NOTRUN", ["NOTRUN"]),
        ("train vae --data IMAGES --batch-size 9 --run-dir OTHER", ["recipe = 'bert', not 'vae'"]),
        ("sample NOTRUN", ["NOTRUN", "config.json"]),
        ("sample OTHER", ["OTHER", "bert"]),
        ("sample RUN --class 7", ["'7'", "0, 1"]),
        ("sample RUN --count 0", ["count", "0"]),
        ("sample RUN --out picture.nope", ["picture.nope"]),
        ("sample RUN --out no/such/dir.png/x.png", None),
        ("runs missing", ["missing"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, said, run, images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NOTRUN").mkdir()
    (tmp_path / "NOTRUN" / "thesis.txt").write_text("mine")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "config.json").write_text('{"recipe": "bert"}')
    (tmp_path / "no").write_text("a file where a folder would have to be")
    words = words.replace("IMAGES", str(images)).replace("RUN ", f"{run} ")
    words = words.replace("--run-dir RUN", f"--run-dir {run}").split()
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 2
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err
    if said is not None:
        assert len(shown.err.splitlines()) == 1, shown.err
        for part in said:
            assert part in shown.err
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


def idx(path, *, magic=0x00000803, sizes=(10, 6, 5), content=None):
    """An IDX file of images whose header says what it is told to."""
    header = magic.to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in sizes)
    path.write_bytes(header + (bytes(10 * 6 * 5) if content is None else content))


def nothing_at_all(folder):
    return "missing.npz"


def truncated_idx(folder):
    idx(folder / "train-images-idx3-ubyte", content=bytes(17))
    return "train-images-idx3-ubyte"


def wrong_magic(folder):
    idx(folder / "train-images-idx3-ubyte", magic=0x12345678)
    return "train-images-idx3-ubyte"


def promised_terabytes(folder):
    idx(folder / "train-images-idx3-ubyte", sizes=(2**31 - 1, 2**16, 2**16))
    return "train-images-idx3-ubyte"


def npz_with_a_pickle(folder):
    np.savez(folder / "data.npz", image=np.array([{"run": "me"}], object), label=np.zeros(1, int))
    return "data.npz"


def labels_out_of_range(folder):
    image = np.zeros((6, 4, 4), np.uint8)
    label, other = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 0, 9, 2])
    np.savez(folder / "data.npz", x_train=image, y_train=label, x_test=image, y_test=other)
    return "data.npz"


def broken_png(folder):
    from PIL import Image

    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(3):
            Image.new("L", (4, 4), index).save(folder / name / f"{index}.png")
    (folder / "dog" / "1.png").write_bytes((folder / "dog" / "1.png").read_bytes()[:40])
    return "."


@pytest.mark.parametrize(
    "make",
    [
        nothing_at_all,
        truncated_idx,
        wrong_magic,
        promised_terabytes,
        npz_with_a_pickle,
        labels_out_of_range,
        broken_png,
    ],
)
def test_bad_data_is_one_line_and_status_3_and_nothing_is_written(make, tmp_path, capfd):
    folder, run_dir = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    path = folder / make(folder)
    assert main(["train", "vae", "--data", str(path), "--run-dir", str(run_dir), *SMALL]) == 3
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1, shown
    assert str(folder) in shown
    assert not run_dir.exists()


def test_another_checkpoint_is_named_with_those_that_are_there(run, capfd):
    assert main(["sample", str(run), "--checkpoint", "5"]) == 4
    assert "latest and best" in capfd.readouterr().err
