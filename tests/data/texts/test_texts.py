"""People's own tables of texts: what is found in them, what is refused, and how they are split."""

import bz2
import csv
import gzip
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopax.data import read_texts
from loopax.data.columns import Columns
from loopax.errors import ConfigError

MIB = 2**20
quick = settings(deadline=None, max_examples=20)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
cells = st.text(characters, max_size=12)
labels = st.sampled_from(["no", "yes", "ä b", "x,y", 'quo"te'])
tables = st.lists(st.tuples(cells, labels), min_size=2, max_size=12).filter(
    lambda rows: len({label for _, label in rows}) > 1 and any(text.strip() for text, _ in rows)
)


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def delimited(rows, delimiter=",", header=("text", "label")):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return file.getvalue()


def json_lines(rows, header=("text", "label")):
    return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)


def pairs(texts):
    """Text and name of class of each row, as they were written."""
    names = [*texts.class_names, None]
    return [(row[0], names[label]) for row, label in zip(texts.rows, texts.labels, strict=True)]


# Formats


@quick
@given(
    tables,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_csv_is_read_as_it_was_written(scratch, rows, delimiter, encoding):
    path = written(scratch / "round.csv", delimited(rows, delimiter), encoding)
    texts = read_texts(path)
    assert pairs(texts) == rows
    assert texts.columns == Columns(("text",), "label")
    assert texts.labels.dtype == np.int32
    assert texts.class_names == tuple(sorted({label for _, label in rows}))


@quick
@given(tables)
def test_tsv_is_read_as_it_was_written(scratch, rows):
    assert pairs(read_texts(written(scratch / "round.tsv", delimited(rows, "\t")))) == rows


@quick
@given(tables, st.booleans())
def test_json_is_read_as_it_was_written(scratch, rows, is_array):
    objects = [{"text": text, "label": label} for text, label in rows]
    content = json.dumps(objects, indent=2) if is_array else json_lines(rows)
    assert pairs(read_texts(written(scratch / "round.jsonl", content))) == rows


@quick
@given(tables)
def test_parquet_is_read_as_it_was_written(scratch, rows):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = scratch / "round.parquet"
    columns = dict(zip(("text", "label"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns | {"more": [[1]] * len(rows)}), path)
    assert pairs(read_texts(path)) == rows


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_packed_files_are_read(tmp_path, pack, ending):
    rows = [("a b", "no"), ("c d", "yes")]
    path = written(tmp_path / f"t.csv{ending}", pack(delimited(rows).encode()))
    assert pairs(read_texts(path)) == rows
    path = written(tmp_path / f"t.jsonl{ending}", pack(json_lines(rows).encode()))
    assert pairs(read_texts(path)) == rows


def test_parquet_of_hugging_face_keeps_its_names_in_their_order(tmp_path, refuses):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    features = {"label": {"_type": "ClassLabel", "names": ["world", "sports", "business"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b", "c"], "label": [2, 0, 2]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    texts = read_texts(tmp_path / "t.parquet")
    assert texts.class_names == ("world", "sports", "business")
    assert texts.labels.tolist() == [2, 0, 2]
    table = pa.table({"text": ["a", "b", "c"], "label": [2, 0, 3]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    with refuses("t.parquet: row 2", "'3'", "world, sports, business"):
        read_texts(tmp_path / "t.parquet")


def test_quotes_of_a_tsv_without_quoting_are_characters(tmp_path):
    content = 'label\ttext\nno\t"Hi" he said\nyes\t"never closed\nno\tall is "well"\n'
    texts = read_texts(written(tmp_path / "t.tsv", content))
    assert [row[0] for row in texts.rows] == ['"Hi" he said', '"never closed', 'all is "well"']


def test_a_quote_that_opens_a_text_and_one_that_ends_a_later_one_swallow_no_rows(tmp_path):
    rows = [("no", f"text {index}") for index in range(50)]
    rows[3], rows[40] = ("yes", '"to begin with'), ("yes", 'at the end"')
    content = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows)
    texts = read_texts(written(tmp_path / "t.tsv", content))
    assert [row[0] for row in texts.rows] == [text for _, text in rows]
    proper = 'label\ttext\nno\t"one ""two"""\nyes\tthree\n'
    assert read_texts(written(tmp_path / "p.tsv", proper)).rows[0] == ('one "two"',)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_that_became_one_row_are_told_of(tmp_path, end):
    mails = [("Hi\nno, I am late\nBest,\nA", "no"), ("Great\nno, really\n\n!", "yes")]
    content = delimited(mails).replace("\r\n", "\n").replace("\n", end)
    texts = read_texts(written(tmp_path / "t.csv", content))
    assert [row[0].split(end) for row in texts.rows] == [text.split("\n") for text, _ in mails]
    assert "8 lines, 2 rows; the longest row has 4 lines" in texts.description
    stray = 'label,text\nno,"open\nyes,shut"\nyes,"Hi\nno, late\n\nBest"\n'
    assert "6 lines, 2 rows" in read_texts(written(tmp_path / "s.csv", stray)).description
    plain = written(tmp_path / "p.csv", "text,label\n\na,b\nc,d")
    assert "lines" not in read_texts(plain).description


def test_tools_that_label_write_lists_of_one(tmp_path, refuses):
    objects = [{"text": "a", "label": ["no"]}, {"text": "b", "label": ["yes"]}]
    path = written(tmp_path / "t.jsonl", "\n".join(map(json.dumps, objects)))
    assert pairs(read_texts(path)) == [("a", "no"), ("b", "yes")]
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [["a"], ["b"]], "label": [["no"], ["yes"]]}), path)
    assert pairs(read_texts(path)) == [("a", "no"), ("b", "yes")]
    pq.write_table(pa.table({"text": ["a", "b"], "label": [{"name": "no"}, {"name": "b"}]}), path)
    with refuses("t.parquet: row 0", "'label' is a dict", "a string or a number"):
        read_texts(path)


def test_classes_that_differ_in_case_alone_are_told_of(tmp_path):
    rows = [(f"text {index}", ("Pos", "pos", "neg")[index % 3]) for index in range(9)]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows)))
    assert "differ in case or spaces alone: Pos, pos" in texts.description


def test_labels_that_may_mean_nothing_are_told_of_and_invisible_characters_are_nothing(tmp_path):
    rows = [("a", "NA"), ("b", "no\u200b"), ("c", "\ufeff no"), ("d", "null")]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows, header=("text", "label\u200b"))))
    assert texts.class_names == ("NA", "no", "null")
    assert texts.columns.label == "label"
    assert "'NA', 'null' (remove their rows" in texts.description


def test_columns_that_nobody_uses_do_no_harm(tmp_path):
    header = ("text", "verdict", "note", "split")
    rows = [(f"text {row}", "ab"[row % 2], 1, ("train", "test")[row % 2]) for row in range(8)]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows, header=header)))
    assert texts.columns == Columns(("text",), "verdict")
    assert "column 'split' not looked at" in texts.description


def test_a_cell_of_a_megabyte_is_read(tmp_path):
    long = "word and\n" * (MIB // 9)
    path = written(tmp_path / "t.csv", delimited([(long, "no"), ("short", "yes")]))
    limit = csv.field_size_limit()
    assert read_texts(path).rows[0] == (long,)
    assert csv.field_size_limit() == limit, "it is everybody's"


def test_blank_lines_are_no_rows_and_quoted_line_breaks_no_ends(tmp_path, refuses):
    content = 'text,label\r\n\r\n"one\r\ntwo",no\r\n\r\nthree,yes\r\n'
    assert pairs(read_texts(written(tmp_path / "t.csv", content))) == [
        ("one\r\ntwo", "no"),
        ("three", "yes"),
    ]
    with refuses("t.csv: line 7", "has no label in 'label'"):
        read_texts(written(tmp_path / "t.csv", content + "four,\r\n"))


# Columns


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (("text", "label"), Columns(("text",), "label")),
        (("Review", "Sentiment"), Columns(("Review",), "Sentiment")),
        (("text", "class", "label"), Columns(("text",), "label")),
        (("sentence", "text", "label"), Columns(("text",), "label")),
        (("label", "Sentence 2", "Sentence_1"), Columns(("Sentence_1", "Sentence 2"), "label")),
        (("premise", "hypothesis", "gold_label"), Columns(("premise", "hypothesis"), "gold_label")),
        (("text", "label", "group"), Columns(("text",), "label", "group")),
    ],
)
def test_usual_names_are_known(tmp_path, header, chosen):
    rows = [[f"{name} {row % 2}" for name in header] for row in range(4)]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows, header=header)))
    assert texts.columns == chosen
    assert texts.rows[1] == tuple(f"{name} 1" for name in chosen.text)


def test_other_names_are_told_apart_by_what_is_in_them(tmp_path):
    rows = [(row, "a longer piece of writing " * 3 + str(row), "ab"[row % 2]) for row in range(9)]
    path = written(tmp_path / "t.csv", delimited(rows, header=("id", "wording", "verdict")))
    texts = read_texts(path)
    assert texts.columns == Columns(("wording",), "verdict")
    assert texts.class_names == ("a", "b")
    assert "texts in 'wording', labels in 'verdict'" in texts.description


def test_columns_that_are_named_are_believed(tmp_path, refuses):
    rows = [("t1", "x1", "no", "g"), ("t2", "x2", "yes", "")]
    path = written(tmp_path / "t.csv", delimited(rows, header=("text", "note", "label", "who")))
    texts = read_texts(path, text=["note", "text"], label="label", group="who")
    assert texts.rows == [("x1", "t1"), ("x2", "t2")]
    assert texts.groups == ("g", "")
    with refuses("t.csv", "has no column 'txt'", "'text', 'note', 'label', 'who'"):
        read_texts(path, text=["txt"])
    with refuses("text is 'note'", error=ConfigError):
        read_texts(path, text="note")


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (("review", "comment", "label"), ["the texts", "(text)", "'review', 'comment'"]),
        (("first", "second", "label"), ["the texts", "(text)", "'first', 'second'"]),
        (("text", "class", "category"), ["the labels", "(label)", "'class', 'category'"]),
        (("text", "one", "two"), ["the labels", "(label)", "'one', 'two'"]),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path, refuses, header, parts):
    rows = [[f"word {row % 2}"] * 3 for row in range(8)]
    with refuses("t.csv", "is not clear", *parts):
        read_texts(written(tmp_path / "t.csv", delimited(rows, header=header)))


def test_a_table_without_texts_or_labels_says_what_it_has(tmp_path, refuses):
    rows = [(1, 2.5), (2, 3.5), (3, 4.5)]
    with refuses("no column looks like texts", "(text)", "'id', 'price'"):
        read_texts(written(tmp_path / "t.csv", delimited(rows, header=("id", "price"))))
    rows = [(f"some words {row}", row) for row in range(9)]
    with refuses("no column looks like labels", "(label)", "there are 'id';"):
        read_texts(written(tmp_path / "t.csv", delimited(rows, header=("words", "id"))))


def test_a_first_line_of_data_is_not_lost(tmp_path, refuses):
    rows = [("fine film", "good"), ("poor film", "bad")]
    content = delimited(rows, header=("great film", "good"))
    with refuses("t.csv: line 1", "looks like data", "'good'", "name the columns"):
        read_texts(written(tmp_path / "t.csv", content))
    with refuses("t.tsv: line 1", "looks like data", "'3'"):
        read_texts(written(tmp_path / "t.tsv", "3\tSome news\n4\tOther news\n3\tMore\n"))


# Labels


def test_classes_are_in_their_natural_order(tmp_path):
    rows = [("a", "10"), ("b", "9"), ("c", "-1")]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows)))
    assert texts.class_names == ("-1", "9", "10")
    assert texts.labels.tolist() == [2, 1, 0]
    rows = [("a", "10"), ("b", "9"), ("c", "x")]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows)))
    assert texts.class_names == ("10", "9", "x")


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (1, 0, ("0", "1")),
        (1.0, 0.0, ("0", "1")),
        (0.5, 2, ("0.5", "2")),
        (True, False, ("false", "true")),
        ("True", "FALSE", ("false", "true")),
        (" 1.0", "2.00 ", ("1", "2")),
    ],
)
def test_labels_are_spelled_in_one_way(tmp_path, first, second, names):
    path = written(tmp_path / "t.jsonl", json_lines([("a", first), ("b", second)]))
    texts = read_texts(path)
    assert texts.class_names == names
    known = read_texts(path, class_names=names[::-1])
    assert pairs(known) == pairs(texts)
    assert known.class_names == names[::-1]


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_a_missing_label_is_refused_unless_none_is_needed(tmp_path, refuses, empty):
    path = written(tmp_path / "t.jsonl", json_lines([("a", "x"), ("b", empty), ("c", "y")]))
    with refuses("t.jsonl: line 2", "has no label in 'label'"):
        read_texts(path)
    assert read_texts(path, label="label", labelled=False).labels.tolist() == [0, -1, 1]
    texts = read_texts(path, labelled=False)
    assert (texts.labels.tolist(), texts.class_names) == ([-1] * 3, ())


def test_only_known_classes_may_occur_where_some_are(tmp_path, refuses):
    path = written(tmp_path / "test.csv", delimited([("a", "no"), ("b", "maybe")]))
    with refuses("test.csv: line 3", "'maybe'", "'label'", "no, yes"):
        read_texts(path, class_names=["no", "yes"])
    texts = read_texts(path, class_names=["maybe", "no", "yes"])
    assert texts.labels.tolist() == [1, 0]
    with refuses("class_names", "differ", error=ConfigError):
        read_texts(path, class_names=["no", "no"])


def test_a_test_file_may_have_one_class_and_one_to_train_on_not(tmp_path, refuses):
    path = written(tmp_path / "t.csv", delimited([("a", "no"), ("b", "no")]))
    assert read_texts(path, class_names=["no", "yes"]).labels.tolist() == [0, 0]
    with refuses("t.csv", "'label'", "only the label 'no'", "at least two"):
        read_texts(path)


def test_numbers_to_predict_are_no_classes(tmp_path, refuses):
    rows = [(f"text {row}", row / 7) for row in range(60)]
    with refuses("t.csv", "60 different labels in 60 rows"):
        read_texts(written(tmp_path / "t.csv", delimited(rows)))


# Texts


def test_empty_texts_are_kept_and_counted(tmp_path, refuses):
    path = written(tmp_path / "t.jsonl", json_lines([("a", 0), (None, 1), (" ", 1)]))
    texts = read_texts(path)
    assert texts.rows == [("a",), ("",), (" ",)]
    assert "2 with an empty text" in texts.description
    with refuses("t.csv", "'text'", "only empty texts"):
        read_texts(written(tmp_path / "t.csv", delimited([("", 0), ("", 1)])))


def test_the_description_says_what_was_found(tmp_path):
    rows = [("abc", "no", "m"), ("abcdef", "yes", "m"), ("ab", "no", "")]
    path = written(tmp_path / "films.csv", delimited(rows, ";", ("text", "label", "group")))
    assert read_texts(path).description == (
        "films.csv (CSV with ;, texts in 'text', labels in 'label', groups in 'group'): 3 texts, "
        "2 classes (no 2, yes 1), 1 groups, 3 characters in the median, 6 at most"
    )
    texts = read_texts(path, text=["text", "group"], label="label")
    assert "pairs in 'text' and 'group'" in texts.description
    rows = [("abc", label) for label in range(10)]
    description = read_texts(written(path, delimited(rows))).description
    assert "10 classes (0 1, 1 1, ..., 9 1)" in description


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.csv", "", ["is empty", "name the columns"]),
        ("t.csv", "text,label\n", ["holds no rows of data"]),
        ("t.csv", "text,label,text\na,b,c\n", ["line 1", "2 columns 'text'"]),
        ("t.csv", "text,label\na,b\nc\n", ["line 3", "has 1 cells", "header has 2"]),
        ("t.csv", 'text,label\na,b\n"c,d\ne,f\n', ["line 3", "quotes", "doubled"]),
        ("t.csv", 'text,label\na,b\n"c"d,e\n', ["line 3", "quotes", "doubled"]),
        ("t.csv", "text,label\na\0b,c\n", ["line 2", "NUL", "UTF-16"]),
        ("t.csv", b"text,label\na,b\n\nna\xefve,c\n", ["line 4", "0xef", "UTF-8"]),
        ("t.csv", b"\xff\xfet\0e\0\0", ["UTF-16", "truncated"]),
        ("t.jsonl", "", ["is empty", "JSON object on each line"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": \n', ["line 2", "cannot be read as JSON"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n3\n', ["line 2", "no JSON object"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n', ["line 2", "has no 'text'"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', ["line 2", "no label"]),
        ("t.jsonl", '{"text": "\\ud800", "label": 1}\n', ["line 1", "surrogate"]),
        ("t.json", "[1, 2]", ["row 0", "no JSON object"]),
        ("t.json", "[{]", ["cannot be read as a JSON array"]),
        ("t.json", "[" * 100_000, ["cannot be read as a JSON array"]),
        ("t.parquet", "text,label\n", ["cannot be read as Parquet"]),
        ("t.csv.gz", "text,label\na,b\n", ["cannot be read", "gzip"]),
        ("t.xlsx", "PK", ["must end in .csv", "save spreadsheets as CSV"]),
        ("t.doc", "PK", ["must end in .csv, .tsv", ".parquet", ".gz"]),
        (
            "t.csv",
            'label,text\nno,"open\nno,one\nyes,two\nyes,the end"\nyes,3\n',
            ["line 2", "2 whole lines like other rows"],
        ),
        (
            "t.csv",
            'label,text\rno,"open\rno,one\r\ra,b,c\ryes,two\ryes,1\rno,the end"\ryes,3\r',
            ["line 2", "3 whole lines like other rows"],
        ),
        (
            "t.jsonl",
            '{"text": "a", "label": ["b", "c"], "by": "x"}\n' * 4 + '{"text": "a", "by": "y"}\n',
            ["line 1", "'label' is a list", "a string or a number"],
        ),
        ("t.jsonl", '{"text": "a", "cats": {"b": 1}}\n', ["'cats'", "a string or a number"]),
        ("t.json", '[{"id": 1, "data": {"text": "a"}}]', ["'data'", "a string or a number"]),
        ("t.json", '{\n"data": [{"text": "a"}]}', ["line 1", "an array of them"]),
        ("t.parquet.gz", "", ["must end in"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path, refuses, name, content, parts):
    with refuses(name, *parts):
        read_texts(written(tmp_path / name, content))


def test_a_list_is_no_text(tmp_path, refuses):
    objects = [{"text": "a", "label": 1}] * 2000 + [{"text": ["a", "b"], "label": 0}]
    path = written(tmp_path / "t.json", json.dumps(objects))
    with refuses("t.json: row 2000", "'text' is a list"):
        read_texts(path)


def test_what_is_no_file_is_refused(tmp_path, refuses):
    with refuses("absent.csv", "No such file"):
        read_texts(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with refuses("folder.csv", "is a folder without tables"):
        read_texts(tmp_path / "folder.csv")


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.parquet", "x.csv.gz", "x.jsonl.bz2"]),
    st.sampled_from([b"", b"text,label\n", b'{"text": "', b"PAR1", b"\x1f\x8b\x08", b"\xff\xfe"]),
    st.binary(max_size=80),
)
def test_any_bytes_are_texts_or_one_line(scratch, outcome, name, start, rest):
    (scratch / name).write_bytes(start + rest)
    found = outcome(read_texts, scratch / name)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert name in found
    else:
        assert len(found.fingerprint) == 64
        assert len(found.description.splitlines()) == 1


@settings(deadline=None, max_examples=40)
@given(tables, st.sampled_from([".csv", ".tsv", ".jsonl", ".csv.gz", ".parquet"]), st.data())
def test_one_changed_byte_is_texts_or_one_line(scratch, outcome, rows, ending, data):
    if ending == ".parquet":
        pa = pytest.importorskip("pyarrow")
        sink = io.BytesIO()
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), sink)
        content = bytearray(sink.getvalue())
    else:
        text = json_lines(rows) if ending == ".jsonl" else delimited(rows, ",\t"[ending == ".tsv"])
        content = bytearray(text.encode())
        content = bytearray(gzip.compress(content)) if ending.endswith(".gz") else content
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = written(scratch / f"flip{ending}", bytes(content))
    found = outcome(read_texts, path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert path.name in found


def test_memory_follows_what_is_kept_not_what_is_passed_over(tmp_path, within):
    rows = [(f"text {row}", row % 2, "x" * 2_000) for row in range(4000)]
    path = written(tmp_path / "t.csv", delimited(rows, header=("text", "label", "other")))
    with within(5 * MIB):  # of 8 MB, the first thousand rows are kept to choose columns by
        assert len(read_texts(path)) == 4000


# Identity


def test_the_fingerprint_is_of_the_content(tmp_path):
    rows = [("a", "no"), ("bc", "yes")]
    texts = read_texts(written(tmp_path / "t.csv", delimited(rows)))
    same = read_texts(written(tmp_path / "u.jsonl", json_lines(rows)))
    assert texts.fingerprint == same.fingerprint
    others = [
        replace(texts, rows=[("ab",), ("c",)]),
        replace(texts, rows=[("a", "b"), ("c",)]),
        replace(texts, labels=texts.labels[::-1]),
        replace(texts, class_names=("no", "maybe")),
        replace(texts, groups=("", "")),
    ]
    others += [replace(texts, rows=[pair, ("d", "")]) for pair in [("a", "bc"), ("ab", "c")]]
    assert len({each.fingerprint for each in [texts, *others]}) == 8


def test_a_table_is_found_as_its_path_is_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a caf\u00e9.csv", "text,label\nx,a\ny,b\n")
    for typed in (f"~/{path.name}", path.as_uri(), f"./{path.name}"):
        assert len(read_texts(typed)) == 2
