"""The command line as a person types it: help at once, mistakes in one line, status 2."""

import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import loopax
from loopax.cli import main, training
from loopax.cli.parsing import seconds
from loopax.run.directory import RunDir
from loopax.terminal import output_optional
from loopax.weights import read_weights
from tests.recipes.conftest import drawn_in_haste, judged_in_haste


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Tiny images of two classes as .npz: 90 to train on, 10 to choose by, 12 to test on."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    generator = np.random.default_rng(0)
    label = np.arange(112) % 2
    image = (generator.random((112, 6, 5)) * 100 + 150 * label[:, None, None]).astype(np.uint8)
    np.savez(path, image=image, label=label)
    return path


SMALL = ["--epochs", "2", "--batch-size", "10", "--widths", "8", "--latent", "2"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run on those images."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "vae", "--data", str(images), "--run-dir", str(directory), *SMALL]
    with judged_in_haste(), drawn_in_haste():
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
        "report.html",
        "sampler.safetensors",
        "pictures/samples.png",
        "pictures/reconstructions.png",
        "pictures/curves.png",
        "pictures/samples-epoch-001.png",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"step", "objective", "samples", "judge"}
    assert set(results["samples"]) == {"mixture", "prior", "baseline", "floor"}
    start = json.loads((run / "run.json").read_text())["starts"][0]
    assert start["packages"]["jax"]
    assert start["devices"]
    assert len(start["data"]["data"]) == 64


def test_training_a_finished_run_again_says_so_and_changes_nothing(run, images, capfd):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "vae", "--data", str(images), "--run-dir", str(run), *SMALL]) == 0
    shown = capfd.readouterr()
    assert "finished, 18 of 18 steps" in shown.err
    assert "Objective" in shown.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_sample_reconstruct_evaluate_and_runs_work_on_the_run(run, tmp_path, capsys):
    from PIL import Image

    assert (
        main(["sample", str(run), "--class", "1", "--count", "3", "--out", str(tmp_path / "s.png")])
        == 0
    )
    width, height = Image.open(tmp_path / "s.png").size
    assert width * (6 + 2 + 2) == height * (3 * (5 + 2) + 2), "three images and lines between them"
    assert main(["sample", str(run), "--checkpoint", "best", "--out", str(tmp_path / "t.png")]) == 0
    assert main(["reconstruct", str(run), "--out", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").stat().st_size > 0
    capsys.readouterr()
    before = json.loads((run / "results.json").read_text())
    assert main(["evaluate", str(run), "--importance-samples", "20", "--draws", "2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # titles wrap with their tables
    for part in ("squared error per pixel", "20 importance samples", "floor", "Fréchet", "±"):
        assert part in shown
    measured = json.loads((run / "evaluation.json").read_text())
    assert measured["likelihood"]["nll_nats"] <= measured["objective"]["test"]["neg_elbo_nats"] + 1
    assert json.loads((run / "results.json").read_text()) == before
    written = (run / "report.html").read_bytes()
    with drawn_in_haste():
        assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == written, "from what was measured at the end"
    assert main(["runs", str(run.parent)]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "validation" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("frobnicate", ["'frobnicate'", "train"]),
        ("train veo", ["'veo'", "vae"]),
        ("train vae --epcohs 3", ["--epcohs"]),
        ("train vae --latent x", ["--latent is 'x'; it must be a whole number"]),
        ("train vae --sigma x", ["--sigma is 'x'; it must be a number, learned or optimal"]),
        ("train vae --image-size 3", ["--image-size is '3'; it must be two whole numbers"]),
        ("train vae --likelihood x", ["--likelihood is 'x'; it must be squared_error, bernoulli"]),
        ("train vae --preset narrow", ["'narrow'", "there are"]),
        ("train vae --batch-size 0", ["batch_size", "0"]),
        ("train vae --data IMAGES --batch-size 1000", ["batch_size", "1000", "90"]),
        ("train vae --data IMAGES --batch-size 9 --optimizer.freeze nowhere", ["'nowhere'"]),
        ("train vae --data IMAGES --batch-size 9 --run-dir /dev/null/run", ["/dev/null/run"]),
        (
            "train vae --data IMAGES --epochs 3 --batch-size 10 --widths 8 --run-dir RUN",
            ["epochs = 2, not 3"],
        ),
        ("train vae --data IMAGES --batch-size 9 --run-dir NOTRUN", ["NOTRUN"]),
        ("train vae --data IMAGES --batch-size 9 --run-dir OTHER", ["recipe = 'bert', not 'vae'"]),
        ("sample NOTRUN", ["NOTRUN", "config.json"]),
        ("sample RUN --class 7", ["'7'", "0, 1"]),
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


def npz_with_a_pickle(folder):
    np.savez(folder / "data.npz", image=np.array([{"run": "me"}], object), label=np.zeros(1, int))
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
        npz_with_a_pickle,
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


# --- Continue, look back, branch, take elsewhere ------------------------------


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_resume_goes_on_with_the_settings_the_run_was_made_with(
    run, images, tmp_path, monkeypatch, capfd
):
    """Stopped by its budget, which is too short for more than a step, it is the whole run."""
    cut = tmp_path / "cut"
    words = ["train", "vae", "--data", str(images), "--run-dir", str(cut), *SMALL]
    monkeypatch.setattr(training, "STARTED", time.monotonic())
    assert main([*words, "--max-time", "0.01s", "--log", "csv"]) == 0
    shown = capfd.readouterr()
    assert "too short for a step and a save" in shown.err
    assert f"stopped at step 1 of 18; the same command continues {cut}" in shown.err
    assert "Objective" not in shown.out
    assert not (cut / "results.json").exists()
    monkeypatch.setattr(training, "STARTED", time.monotonic())
    assert main(["resume", str(cut), "--max-time", "1:00:00"]) == 0
    assert "Objective" in capfd.readouterr().out
    for name in ("metrics.jsonl", "results.json", "config.json"):
        assert (cut / name).read_text() == (run / name).read_text()
    assert (cut / "metrics.csv").read_text().splitlines()[-1].startswith("18,2.0,validation,")
    assert main(["resume", str(cut)]) == 0
    assert "finished, 18 of 18 steps are done" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5", 0.5),
        ("30m", 1800),
        ("1.5h", 5400),
        ("5:30", 330),
        ("1:30:00", 5400),
    ],
)
def test_a_budget_is_read(words, expected):
    assert seconds("--max-time", words) == expected


@pytest.mark.parametrize(
    "words", ["", "soon", "-5", "1d", "90 s", "1:60:00", "0:75", "1:2:3:4", "nan", "inf", "1e3"]
)
def test_a_budget_that_cannot_be_read_is_named(words):
    with pytest.raises(loopax.errors.ConfigError, match=r"--max-time is .*; give seconds, or 90s"):
        seconds("--max-time", words)


@pytest.mark.parametrize(
    ("named", "expected"),
    [(None, ["CSV"]), ((), []), (("trackio", "csv"), ["CSV", "Trackio"])],
)
def test_rows_go_where_the_last_start_sent_them_unless_it_is_said(
    tmp_path, monkeypatch, named, expected
):
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    starts = [{"writers": ["WandB"]}, {"writers": ["CSV", "MyOwn"]}]
    (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
    chosen = training.chosen_writers(named, tmp_path)
    assert [type(writer).__name__ for writer in chosen] == expected


def test_a_tracker_whose_client_is_missing_is_said_before_anything_is_written(
    images, tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["train", "vae", "--data", str(images), "--run-dir", str(tmp_path / "run"), *SMALL]
    assert main([*words, "--log", "csv", "wandb"]) == 2
    assert "logging to wandb needs wandb: pip install 'loopax[wandb]'" in capfd.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_fresh_start_keeps_the_old_run_beside_the_new_one(
    run, images, tmp_path, monkeypatch, capsys
):
    old = tmp_path / "tiny"
    shutil.copytree(run, old)
    before = {path.relative_to(old): content for path, content in files(old).items()}
    words = ["train", "vae", "--data", str(images), "--run-dir", str(old), *SMALL, "--fresh"]
    monkeypatch.setattr(training, "STARTED", time.monotonic())
    assert main([*words, "--seed", "5", "--max-time", "0.01s"]) == 0
    kept = tmp_path / "tiny-old"
    assert f"{old}: the run that was there is now {kept}" in capsys.readouterr().out
    after = {path.relative_to(kept): content for path, content in files(kept).items()}
    assert after == before
    assert json.loads((old / "config.json").read_text())["seed"] == 5
    assert main(["sample", str(kept), "--out", str(tmp_path / "s.png")]) == 0


@pytest.mark.usefixtures("brief_estimates")
def test_a_dry_run_says_what_a_step_costs_and_writes_nothing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "vae", "--data", str(images), *SMALL, "--dry-run"]
    assert main([*words, "--optimizer.freeze", "posterior"]) == 0
    shown = capsys.readouterr().out
    counted = "90 to train on, 10 to choose by", "12 to test on"
    costs = "trainable (", "frozen (", "FLOP", "memory", "KiB", "batch size 10", "9 steps"
    for part in (*counted, *costs):
        assert part in shown
    assert ", 0 frozen" not in shown
    assert not list(tmp_path.iterdir())


def test_export_writes_the_weights_of_any_run(
    run, tmp_path, capsys, line_state, line_loss, dataset
):
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--checkpoint", "best", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n{out.with_suffix('.stablehlo')}\n"
    with loopax.CheckpointStore(run / "checkpoints") as store:
        expected = store.weights("best")
    written = read_weights(out)
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array)
    other = tmp_path / "line"
    line = loopax.fit(
        line_state(), line_loss, dataset.batches(2), steps=5, run_dir=other, progress=False
    )
    assert main(["export", str(other)]) == 0
    weights = read_weights(other / "weights.safetensors")
    np.testing.assert_array_equal(weights["weights"], line.state.params["weights"])


def test_weights_begin_another_run(run, images, tmp_path, monkeypatch, capfd):
    """From the run or from its file it is the same, as its first step shows."""
    monkeypatch.setattr(training, "STARTED", -1e9)
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    first = {}
    for name, source in (("run", run), ("file", out)):
        words = ["train", "vae", "--data", str(images), *SMALL, "--max-time", "1s"]
        words += ["--weights", str(source), "--run-dir", str(tmp_path / name)]
        assert main(words) == 0
        rows = RunDir.open(tmp_path / name).metrics
        first[name] = next(row["loss"] for row in rows if row["source"] == "train")
    assert first["run"] == first["file"]
    capfd.readouterr()
    before = sorted(tmp_path.rglob("*"))
    words = ["train", "vae", "--data", str(images), "--run-dir", str(tmp_path / "misfit"), *SMALL]
    assert main([*words, "--widths", "4", "--weights", str(run)]) == 4
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1
    assert f"{run}: of another model" in shown
    assert "there and float32" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_replay_shows_a_step_and_keeps_it(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = files(copy)
    assert main(["replay", str(copy), "--step", "9"]) == 0
    shown = capsys.readouterr().out
    assert "image: float32[10, 6, 5, 1]" in shown
    assert "step 9: " in shown
    kept = copy / "replay" / "9"
    told = json.loads((kept / "report.json").read_text())
    for name in ("loss", "kl_nats", "learning_rate"):
        assert f"{name} {told['metrics'][name]!r}\n" in shown
    assert f"{kept}: report.json, batch.npz" in shown
    assert files(copy).keys() - before.keys() == {kept / "report.json", kept / "batch.npz"}
    assert before.items() <= files(copy).items()


def test_rewind_branches_a_run_and_resume_trains_it_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "STARTED", -1e9)
    here, out = tmp_path / "tiny", tmp_path / "tiny-at-9"
    shutil.copytree(run, here)
    monkeypatch.chdir(here)
    before = files(here)
    parent = RunDir.open(here)
    sets = ["--set", "optimizer.learning-rate=1e-4", "--set", "epochs=3", "--set", "kl-weight=2"]
    assert main(["rewind", ".", "--step", "9", *sets]) == 0
    assert f"{out}: begins at step 9 of .; loopax resume {out} goes on" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    expected = {**parent.config, "epochs": 3, "kl_weight": 2.0}
    expected["optimizer"] = {**parent.config["optimizer"], "learning_rate": 1e-4}
    assert config == expected
    # Its budget is spent: it makes a step and is not measured.
    assert main(["resume", str(out), "--max-time", "1s"]) == 0
    branch = RunDir.open(out)
    told = branch.read_json("run.json")
    assert told["parent"] == {"run": str(here), "step": 9}
    assert [start["step"] for start in told["starts"]] == [9]
    evaluated = [
        next(row for row in each.metrics if row["source"] not in ("train", "probe"))
        for each in (branch, parent)
    ]
    assert evaluated[0] == evaluated[1], "the evaluation at step 9"
    assert loopax.CheckpointStore(out / "checkpoints").steps[-1] == 10
    assert files(here) == before


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("train vae --data IMAGES --batch-size 9 --weights no.safetensors", 4, ["no.safetensors"]),
        (
            "train vae --data IMAGES --batch-size 9 --run-dir PLAIN --fresh",
            2,
            ["PLAIN", "not a run"],
        ),
        ("train vae --data OTHER SMALL --run-dir RUN", 3, ["is not the data that", "OTHER"]),
        ("resume PLAIN", 2, ["PLAIN", "config.json"]),
        ("resume RUN --epochs 3", 2, ["--epochs"]),
        ("export RUN --out weights.pt", 2, ["weights.pt", "weights.safetensors"]),
        ("export RUN --out no/weights.safetensors", 6, ["no/weights.safetensors"]),
        ("replay RUN --step -1", 2, ["step is -1"]),
        ("rewind RUN --step 4 --set epochs", 2, ["--set 'epochs'", "name=value"]),
        ("rewind RUN --step 4 --set epohcs=3", 2, ["--epohcs"]),
        ("rewind RUN --step 4 --set batch-size=9", 4, ["batch_size was 10 and would be 9"]),
        ("rewind RUN --step 4 --set optimizer.name=sgd", 4, ["opt_state/"]),
        ("rewind RUN --step 4 --out PLAIN", 2, ["PLAIN", "is there already"]),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_everything_as_it_was(
    words, status, said, run, images, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PLAIN").mkdir()
    (tmp_path / "PLAIN" / "thesis.txt").write_text("mine")
    arrays = dict(np.load(images))
    np.savez(tmp_path / "OTHER.npz", **arrays | {"image": 255 - arrays["image"]})
    before, inside = sorted(tmp_path.rglob("*")), files(run)
    given = {"IMAGES": [str(images)], "RUN": [str(run)], "SMALL": SMALL, "OTHER": ["OTHER.npz"]}
    assert main([part for word in words.split() for part in given.get(word, [word])]) == status
    shown = capfd.readouterr()
    assert len(shown.err.splitlines()) == 1, shown.err
    for part in said:
        assert part in shown.err
    assert sorted(tmp_path.rglob("*")) == before
    assert files(run) == inside


def test_numbers_that_are_none_are_listed(run, tmp_path, capsys):
    """A run whose last evaluation went bad is there to be seen."""
    shutil.copytree(run, tmp_path / "bad")
    with (tmp_path / "bad" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "source": "validation", "loss": "nan"}\n')
    assert main(["runs", str(tmp_path)]) == 0
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_training_goes_on_where_what_it_says_cannot_be_written(name, monkeypatch):
    with open("/dev/full", "w") as full:
        for stream in (full, None):  # a log on a full disk, and no output at all
            monkeypatch.setattr(sys, name, stream)
            with output_optional():
                print("a line", file=getattr(sys, name), flush=True)
            assert getattr(sys, name) is stream


# --- Elsewhere, and damaged -----------------------------------------------------


def test_a_run_goes_on_from_another_folder_with_its_images_moved(
    run, images, tmp_path, monkeypatch, capfd
):
    shutil.copytree(run, tmp_path / "moved")
    (tmp_path / "there").mkdir()
    shutil.copy(images, tmp_path / "there" / "d.npz")
    monkeypatch.chdir(tmp_path / "there")
    assert main(["resume", "../moved", "--data", "d.npz"]) == 0
    command = ["train", "vae", "--run-dir", "../moved", *SMALL]
    assert main([*command, "--data", "./d.npz"]) == 0
    content = np.load("d.npz")
    np.savez("other.npz", image=255 - content["image"], label=content["label"])
    capfd.readouterr()
    assert main([*command, "--data", "other.npz"]) == 3
    told = capfd.readouterr().err
    assert "other.npz" in told
    assert str(images) in told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[1]", "resume RUN"),
        ("config.json", None, "sample RUN"),
        ("model.json", b"{", "sample RUN"),
        ("model.json", b'{"image_shape": 3}', "export RUN"),
        ("results.json", b'{"step": 3}', "resume RUN"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_its_cure(run, tmp_path, capfd, name, content, words):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / name
    file.unlink() if content is None else file.write_bytes(content)
    assert main(words.replace("RUN", str(tmp_path / "run")).split()) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert name in told
    assert any(cure in told for cure in ("remove it", "writes it"))


def test_what_a_run_has_lost_is_written_anew_by_the_command_that_trained(run, images, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    lost = {name: (tmp_path / "run" / name).read_text() for name in ("config.json", "model.json")}
    for name in lost:
        (tmp_path / "run" / name).unlink()
    words = ["train", "vae", "--data", str(images), "--run-dir", str(tmp_path / "run"), *SMALL]
    assert main(words) == 0
    assert {name: (tmp_path / "run" / name).read_text() for name in lost} == lost
