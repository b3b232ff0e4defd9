"""Texts of any source are answered, each as it comes, in order, and in forms that can be read."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loopax import cli
from loopax.data import Columns
from loopax.errors import ConfigError, DataError
from loopax.recipes import bert
from loopax.recipes.bert import predicting

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
NAMES = ("bad", 'good, "really"')


class Counting:
    """A classifier whose second class is the likelier the longer a row is."""

    class_names = NAMES

    def __init__(self, *columns):
        self.columns = Columns(columns or ("text",))
        self.sizes = []

    def probabilities(self, rows, batch_size):
        self.sizes.append((len(rows), batch_size))
        long = np.array([min(sum(map(len, row)), 10) / 10 for row in rows], np.float32)
        return np.stack([1 - long, long], axis=1)


def printed(rows, format, trained=None, size=64):
    return "".join(predicting.answers(trained or Counting(), rows, format, size))


def groups_of(content, size=4):
    """What comes of a pipe into which all of it was written."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        return [list(group) for group in predicting.lines_from(reading, size)]
    finally:
        os.close(reading)


def test_a_pipe_gives_full_groups_and_the_rest():
    lines = [f"line {index}".encode() for index in range(10)]
    assert groups_of(b"\n".join(lines) + b"\n") == [lines[:4], lines[4:8], lines[8:]]
    assert groups_of(b"a\n\n\nb") == [[b"a", b"", b""], [b"b"]]
    assert groups_of(b"") == []


def test_nothing_waits_for_what_is_not_there_yet():
    reading, writing = os.pipe()
    groups = predicting.lines_from(reading, 4)
    os.write(writing, b"one\ntwo\nhal")
    assert next(groups) == [b"one", b"two"]
    os.write(writing, b"f\n")
    assert next(groups) == [b"half"]
    os.write(writing, b"the end")
    os.close(writing)
    assert [*groups] == [[b"the end"]]
    os.close(reading)


def test_lines_are_whole_across_blocks(tmp_path):
    lines = [str(index).encode() * 20 for index in range(5_000)]
    lines[2_000] = b"long" * 50_000
    (tmp_path / "lines.txt").write_bytes(b"\n".join(lines))
    with (tmp_path / "lines.txt").open("rb") as file:
        groups = [*predicting.lines_from(file.fileno(), 64)]
    assert [line for group in groups for line in group] == lines
    assert max(len(group) for group in groups) == 64


def test_lines_are_utf8_and_keep_their_place():
    content = "\ufeffgood\r\n\nna\u00efve\tone".encode().split(b"\n")
    assert [*predicting.rows_from_lines([content], 1, "line")] == [
        [("good",), ("",), ("na\u00efve\tone",)]
    ]


def test_what_came_before_a_bad_line_is_given():
    groups = predicting.rows_from_lines([[b"a"], [b"b", b"c\xff", b"d"]], 1, "it: line")
    assert [next(groups), next(groups)] == [[("a",)], [("b",)]]
    with pytest.raises(
        DataError, match=r"^it: line 3 is not UTF-8: byte 2 is 0xff; save .* as UTF-8$"
    ):
        next(groups)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a good film\nbad\n".encode("utf-16"), "is not UTF-8: byte 1 is 0xff; save"),
        ("a good film\nbad\n".encode("utf-16-le"), r"holds '.+x00'; save the texts as UTF-8"),
        ("caf\u00e9\nbad\n".encode("latin-1"), "is not UTF-8: byte 4 is 0xe9; save"),
        (b"a good film\rbad\r", r"holds '.+r'; save"),
    ],
)
def test_lines_of_another_kind_are_refused_and_not_answered(tmp_path, content, said):
    (tmp_path / "lines.txt").write_bytes(content)
    rows = predicting.rows_from_file(Counting("text"), tmp_path / "lines.txt", 8)
    with pytest.raises(DataError, match=f"lines.txt: line 1 {said}"):
        [row for group in rows for row in group]


@pytest.mark.parametrize(("line", "tabs"), [(b"one", 0), (b"", 0), (b"a\tb\tc", 2)])
def test_a_pair_has_one_tab(line, tabs):
    assert [*predicting.rows_from_lines([[b"one\ttwo", b"\t"]], 2, "line")] == [
        [("one", "two"), ("", "")]
    ]
    with pytest.raises(DataError, match=f"line 1 has {tabs} tabs"):
        list(predicting.rows_from_lines([[line]], 2, "line"))


def test_as_text_each_row_is_a_line():
    rows = [("short",), ("",), ("in\ntwo\r\nlines",)]
    assert printed([rows], "text") == (
        'bad\t0.5000\tshort\nbad\t1.0000\t\ngood, "really"\t1.0000\tin two lines\n'
    )


def test_json_and_csv_can_be_read_again():
    rows = [("a\n,b",), ("",), ('quoted "text" \u2603',)]
    answers = [json.loads(line) for line in printed([rows], "jsonl").splitlines()]
    table = [*csv.DictReader(io.StringIO(printed([rows], "csv"), newline=""))]
    for row, answer, cells in zip(rows, answers, table, strict=True):
        good = min(len(row[0]), 10) / 10
        label, probability = max(zip([1 - good, good], NAMES, strict=True), key=lambda p: p[0])[
            ::-1
        ]
        assert answer == {
            "text": row[0],
            "label": label,
            "probability": pytest.approx(probability),
            "probabilities": dict(
                zip(NAMES, [pytest.approx(1 - good), pytest.approx(good)], strict=True)
            ),
        }
        assert cells["text"] == row[0]
        assert cells["label"] == label
        assert float(cells[f"probability_{NAMES[1]}"]) == pytest.approx(good)
    assert printed([], "csv").count("\n") == 1, "a table without rows has its head"
    assert printed([], "jsonl") == ""


def test_pairs_stay_pairs():
    trained, rows = Counting("premise", "hypothesis"), [[("a", "b")]]
    assert printed(rows, "text", trained) == "bad\t0.8000\ta\tb\n"
    assert json.loads(printed(rows, "jsonl", trained))["text"] == ["a", "b"]
    assert printed(rows, "csv", trained).startswith("text_1,text_2,label")


def test_a_text_alone_is_not_padded_and_few_sizes_are_compiled_for():
    trained = Counting()
    groups = [[("x",)] * count for count in (1, 2, 8, 9, 30, 0)]
    printed(groups, "text", trained, size=30)
    assert trained.sizes == [(1, 1), (2, 8), (8, 8), (9, 30), (30, 30)]


def test_columns_that_the_run_found_by_itself_are_known_to_it(tmp_path, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text('premise,hypothesis\none,two\nthree,\n"4\n",\n,\n')
    rows = [*predicting.rows_from_file(Counting("premise", "hypothesis"), table, 1)]
    assert rows == [[("one", "two")], [("three", "")], [("4\n", "")], [("", "")]]
    assert "pairs.csv: 5 lines, 4 rows" in capsys.readouterr().err
    with pytest.raises(DataError, match="has no column 'text'; its columns are 'premise'"):
        [*predicting.rows_from_file(Counting(), table, 1)]


def test_rows_of_a_table_are_of_the_run_s_column(tmp_path):
    table = tmp_path / "d.jsonl"
    table.write_text(
        "".join(json.dumps({"body": str(i), "note": "x" * 99}) + "\n" for i in range(5))
    )
    groups = [*predicting.rows_from_file(Counting("body"), table, 2)]
    assert [len(group) for group in groups] == [2, 2, 1]
    assert [row for group in groups for row in group] == [(str(index),) for index in range(5)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned little, of texts in which a word decides."""
    home = tmp_path_factory.mktemp("predicting")
    lines = [f"a {word} film {index},{word}" for index in range(40) for word in ("good", "bad")]
    (home / "d.csv").write_text("\n".join(["text,label", *lines]))
    config = replace(
        bert.PRESETS["head"],
        data=str(home / "d.csv"),
        model=str(TINY),
        batch_size=8,
        max_length=16,
    )
    bert.train(config, home / "run", steps=40, progress=False)
    return home / "run"


TEXTS = ["a good film", "", "the bad, bad film!", "caf\u00e9 \u2603"]


@pytest.fixture(scope="module")
def expected(run):
    trained = bert.load(run)
    return [
        f"{label}\t{each.max():.4f}\t{text}\n"
        for text, label, each in zip(
            TEXTS, trained.classify(TEXTS), trained.probabilities(TEXTS), strict=True
        )
    ]


def test_texts_are_answered_from_arguments_files_and_input(
    run, expected, tmp_path, capfd, monkeypatch
):
    assert cli.main(["predict", str(run), *TEXTS]) == 0
    assert capfd.readouterr().out == "".join(expected)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(TEXTS), encoding="utf-8")
    assert cli.main(["predict", str(run), "--file", str(lines), "--batch-size", "3"]) == 0
    assert capfd.readouterr().out == "".join(expected)
    with lines.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert cli.main(["predict", str(run), "--checkpoint", "latest", "--format", "jsonl"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == TEXTS
    assert {round(sum(answer["probabilities"].values()), 4) for answer in answers} == {1.0}


def test_its_own_table_of_answers_can_be_asked_again(run, tmp_path, capfd):
    table = tmp_path / "answers.csv"
    assert cli.main(["predict", str(run), "--format", "csv", *TEXTS]) == 0
    first = capfd.readouterr().out
    table.write_text(first, encoding="utf-8")
    assert cli.main(["predict", str(run), "--format", "csv", "--file", str(table)]) == 0
    assert capfd.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["x", "--file", "f.csv"], 2, "give texts or --file, not both"),
        (["x", "--batch-size", "0"], 2, "--batch-size is 0; it must be at least 1"),
        (["x", "--checkpoint", "77"], 4, "there is no checkpoint of step '77'"),
        (["--file", "no.txt"], 3, "no.txt: cannot be read (No such file or directory)"),
        (["--file", "no.csv"], 3, "no.csv: cannot be read"),
        (["fine", "b\udcffd"], 3, "text 2 is not UTF-8: byte 2 is 0xff; save"),
    ],
)
def test_what_cannot_be_answered_is_one_line(run, words, code, said, capfd):
    assert cli.main(["predict", str(run), *words]) == code
    *before, told = capfd.readouterr().err.splitlines()
    assert told.startswith("loopax: ")
    assert said in told
    assert all("checkpoint of step" in line for line in before)


def test_a_closed_output_is_one_line(run, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["predict", str(run), "x"]) == ConfigError.exit_code
    assert "standard output is closed" in capfd.readouterr().err


def test_a_run_of_another_recipe_is_told_apart(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"recipe": "vae"}')
    assert cli.main(["predict", str(tmp_path), "x"]) == ConfigError.exit_code
    assert "holds a run of vae; predict works on runs of bert" in capfd.readouterr().err


@pytest.fixture
def process(run):
    """`loopax predict RUN`, between pipes."""
    command = [sys.executable, "-m", "loopax", "predict", str(run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


def test_each_line_is_answered_before_the_next_is_written_until_it_is_interrupted(
    process, expected
):
    for text, answer in zip(TEXTS, expected, strict=True):
        process.stdin.write(f"{text}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().decode() == answer
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert out == b""
    assert err.splitlines()[1:] == [b"loopax: stopped"]
    assert process.returncode == 130


def test_a_reader_who_leaves_ends_it_without_a_word(run):
    predict = f"{sys.executable} -m loopax predict {run}"
    piped = f"seq 20000 | {predict} | head -1; echo ${{PIPESTATUS[1]}}"
    result = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert result.stderr.endswith("the best\n"), "which checkpoint answers, and nothing else"
    assert result.stderr.count("\n") == 1
    answer, status = result.stdout.splitlines()
    assert answer.endswith("\t1")
    assert status == "0"
