"""The files of a run: damaged, deleted, or among those of others."""

import json
import os
import shutil

import pytest

import loopax
from loopax.cli import main
from loopax.errors import LoopaxError, RunDirError
from loopax.jsonlines import BLOCK, JsonLines, as_row, rows_backwards
from loopax.run.directory import RunDir
from loopax.run.history import History

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def trained_in(dataset, line_loss, line_state):
    def train(run_dir, *, steps=20, **options):
        return loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(2),
            steps=steps,
            run_dir=run_dir,
            **{"log_every": 4, "probe_every": None, **QUIET, **options},
        )

    return train


@pytest.fixture
def train(trained_in, tmp_path):
    return lambda name="run", **options: trained_in(tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(trained_in, tmp_path_factory):
    """Thirty steps of it."""
    return trained_in(tmp_path_factory.mktemp("whole") / "run", steps=30)


@pytest.fixture(scope="module")
def twenty(trained_in, tmp_path_factory):
    """The directory of a run of twenty steps, to be copied."""
    return trained_in(tmp_path_factory.mktemp("twenty") / "run").dir.path


GARBAGE = b"\x00\xff{not json"
BEGUN_ANEW = "run.json: cannot be read; kept as run.json.damaged, and begun anew"
LOST = "metrics.jsonl: has 0 of the 5 rows"
DAMAGED = [
    ("run.json", GARBAGE, BEGUN_ANEW),
    ("run.json", None, "run.json: is missing; begun anew"),
    ("metrics.jsonl", GARBAGE, LOST),
    ("metrics.jsonl", None, LOST),
    ("timing.jsonl", GARBAGE, ""),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED)
def test_a_file_that_is_damaged_or_gone_is_told_of_and_the_run_goes_on(
    train, whole, twenty, tmp_path, bits, capsys, name, content, said
):
    file = shutil.copytree(twenty, tmp_path / "run") / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    parts = train(steps=30, progress=True)
    assert bits(parts.state) == bits(whole.state)
    assert said in capsys.readouterr().err
    assert [row["step"] for row in parts.history][-2:] == [28, 30]
    assert parts.dir.read_json("run.json")["starts"][-1]["step"] == 20


def test_rows_after_a_line_that_is_none_are_not_lost(train, twenty, tmp_path):
    file = shutil.copytree(twenty, tmp_path / "run") / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], GARBAGE + b"\n", *lines[2:]]))
    run = train(steps=28)
    assert [row["step"] for row in run.history] == [4, 8, 12, 16, 20, 24, 28]
    assert run.dir.metrics == list(run.history)


def test_a_run_without_its_configuration_is_still_a_run_and_what_is_none_is_not(
    train, tmp_path, capsys
):
    train(config={"rate": 1})
    (tmp_path / "run" / "config.json").unlink()
    assert train(steps=30, config={"rate": 1}, progress=True).step == 30
    assert "config.json: is missing; written anew" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirError, match="mine: is not empty and holds no run"):
        train(name="mine")


def test_what_other_programs_leave_in_a_directory_does_not_matter(train, whole, tmp_path, bits):
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        folder.mkdir(exist_ok=True)
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "lost+found").mkdir()
        for name in (".DS_Store", "Thumbs.db", "._7"):
            (folder / name).write_bytes(GARBAGE)
        if folder.name == "run":
            train()
    (tmp_path / "run" / "checkpoints" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "checkpoints" / "20 copy").mkdir()
    assert bits(train(steps=30).state) == bits(whole.state)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
def test_a_file_deleted_while_the_run_goes_on_is_told_of_or_written_again(
    train, tmp_path, capsys, name
):
    def delete(run):
        if run.step == 10:
            (run.dir.path / name).unlink()

    run = train(hooks=loopax.Hook(delete, 10), progress=True)
    assert run.step == 20
    if name.endswith("jsonl"):
        said = f"{name}: was deleted while the run went on; written again"
        assert said in capsys.readouterr().err
    assert [row["step"] for row in run.dir.metrics] == [4, 8, 12, 16, 20]
    assert train(steps=30).step == 30


def test_a_directory_deleted_while_the_run_goes_on_is_one_line(train, tmp_path):
    with pytest.raises(LoopaxError, match="was removed or moved while the run went on") as caught:
        train(hooks=loopax.Hook(lambda run: shutil.rmtree(run.dir.path), 10), steps=10**6)
    assert caught.value.run.step >= 10


# --- Listed -------------------------------------------------------------------


def test_runs_lists_runs_and_nothing_else(twenty, tmp_path, capsys):
    for name in ("good", "deep/er/also", "damaged", "rows", "provenance"):
        shutil.copytree(twenty, tmp_path / name)
    (tmp_path / "damaged" / "config.json").write_bytes(GARBAGE)
    (tmp_path / "rows" / "metrics.jsonl").write_bytes(GARBAGE)
    (tmp_path / "provenance" / "run.json").write_bytes(GARBAGE)
    for name in ("model", ".ipynb_checkpoints"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert"}))
        (tmp_path / name / "metrics.jsonl").write_text('{"epoch": 1, "loss": 3}\n')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1]")
    (tmp_path / "notes.txt").write_text("mine")
    os.symlink(tmp_path, tmp_path / "deep" / "circle")
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    table = [line for line in shown.out.splitlines() if str(tmp_path)[-20:] in line]
    listed = {line.split("\u2502")[1].strip().removeprefix(f"{tmp_path}/") for line in table}
    assert listed == {"good", "deep/er/also", "rows", "provenance"}
    assert len(shown.err.splitlines()) == 1
    assert "damaged/config.json" in shown.err
    assert main(["runs", str(tmp_path / "list")]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"{tmp_path / 'list'}: no run is below it\n")


def test_runs_shows_what_ranks_the_checkpoints(
    twenty, tmp_path, dataset, line_loss, line_state, capsys
):
    loopax.fit(
        line_state(),
        line_loss,
        dataset.batches(2),
        steps=20,
        run_dir=tmp_path / "run",
        evaluation=loopax.Evaluation({"validation": dataset.batches(100)}, every=10),
        checkpoints=loopax.Checkpoints(best="validation/error"),
        **QUIET,
    )
    shutil.copytree(twenty, tmp_path / "plain")
    assert main(["runs", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    rows = [row for row in RunDir(tmp_path / "run").metrics if row["source"] == "validation"]
    best = min(rows, key=lambda row: row["error"])
    values = f"{rows[-1]['error']:.4g} {best['error']:.4g} {best['step']}"
    assert f"run - 20 validation/error {values}" in shown
    loss = f"{RunDir(twenty).metrics[-1]['loss']:.4g}"
    assert f"plain - 20 train/loss {loss} - -" in shown, "nothing ranks"


# --- Rows ---------------------------------------------------------------------


def test_the_rows_of_a_file_are_read_up_to_a_step_and_from_its_end(tmp_path):
    file, count = tmp_path / "metrics.jsonl", 4000
    with file.open("w") as lines:
        for step in range(1, count + 1):
            for source in ("train", "test") if step % 1000 == 0 else ("train",):
                lines.write(json.dumps({"step": step, "source": source, "loss": 1 / step}) + "\n")
    rows = RunDir(tmp_path).metrics
    assert file.stat().st_size > 2 * BLOCK
    assert [*rows_backwards(file)] == rows[::-1]
    history = History.up_to(count // 2, file)
    assert history == rows[: count // 2 + 2]
    assert history.latest("test") == {"step": 2000, "source": "test", "loss": 1 / 2000}
    assert history.latest("nobody") == {}
    assert [row["step"] for row in history.of("test")] == [1000, 2000]


def test_a_log_goes_on_in_place_and_what_came_before_is_not_read_as_json(tmp_path, monkeypatch):
    file, count = tmp_path / "metrics.jsonl", 3000
    rows = [{"step": step, "source": "train", "loss": 1 / step} for step in range(1, count + 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3001, "sou')
    read, place = [], file.stat().st_ino
    monkeypatch.setattr("loopax.run.history.as_row", lambda line: read.append(1) or as_row(line))
    history = History.up_to(count - 10, file)
    assert len(history) == count - 10
    assert len(read) == 13, "ten rows, what was cut, and where to stop"
    lines = JsonLines(file, history.rows, past=history.past.end)
    lines.write(rows[count - 10])
    lines.close()
    assert file.stat().st_ino == place
    assert RunDir(tmp_path).metrics == rows[: count - 9]
    assert history == rows[: count - 10]
    changed = {**rows[count - 11], "loss": 2.0}
    JsonLines(file, [changed], past=history.past.end).close()
    assert RunDir(tmp_path).metrics == [*rows[: count - 11], changed], "another row in its place"
