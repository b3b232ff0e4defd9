"""Texts in several files, in packed ones, and in the folders of Hugging Face."""

import gzip
import json
import zipfile

import pytest

from loopax.data import read_text_parts, read_texts

ROWS = [("a fine film", "good"), ("dull", "bad"), ("great", "good"), ("poor", "bad")]


def csv(rows, header="text,label"):
    return "\n".join([header, *map(",".join, rows)]) + "\n"


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def arrow(path, rows):
    """As `datasets.save_to_disk` writes it, with the names of the classes in its metadata."""
    pa = pytest.importorskip("pyarrow")
    names = ["bad", "good"]
    label = {"names": names, "_type": "ClassLabel"}
    info = {"info": {"features": {"label": label}}}
    columns = {"text": [text for text, _ in rows], "label": [names.index(of) for _, of in rows]}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (path.parent / "state.json").write_text("{}")


def whole_zip(folder):
    zipped(folder / "reviews.zip", {"reviews.csv": csv(ROWS), "__MACOSX/._reviews.csv": "x"})
    return folder / "reviews.zip"


def pattern(folder):
    for index, rows in enumerate((ROWS[:1], ROWS[1:])):
        (folder / f"reviews-{index}.csv").write_text(csv(rows))
    (folder / "other.csv").write_text(csv([("no", "x")]))
    return folder / "reviews-*.csv"


def packed_shards(folder):
    for index, rows in enumerate((ROWS[:3], ROWS[3:])):
        name = f"data-{index:05}-of-00002.csv.gz"
        (folder / name).write_bytes(gzip.compress(csv(rows).encode()))
    (folder / "README.md").touch()
    return folder


def saved_to_disk(folder):
    arrow(folder / "data-00000-of-00002.arrow", ROWS[:2])
    arrow(folder / "data-00001-of-00002.arrow", ROWS[2:])
    return folder


FORMS = [whole_zip, pattern, packed_shards, saved_to_disk]


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__ for form in FORMS])
def test_the_same_rows_are_read_from_each_form(tmp_path, form):
    texts = read_texts(form(tmp_path))
    rows = zip(texts.rows, texts.labels, strict=True)
    assert [(text, texts.class_names[label]) for (text,), label in rows] == ROWS


def test_parts_of_a_folder_are_parts_of_the_texts(tmp_path, refuses):
    arrow(tmp_path / "test" / "data-00000-of-00001.arrow", ROWS[:2])
    arrow(tmp_path / "train" / "data-00000-of-00001.arrow", ROWS)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    parts = read_text_parts(tmp_path)
    assert {name: len(part) for name, part in parts.items()} == {"train": 4, "test": 2}
    with refuses(tmp_path, "holds the parts train, test; give the path of one, or a pattern"):
        read_texts(tmp_path)


def test_parts_without_metadata_have_the_classes_of_the_first(tmp_path, refuses):
    (tmp_path / "train.csv").write_text(csv(ROWS))
    (tmp_path / "valid.csv").write_text(csv(ROWS[:1]))
    parts = read_text_parts(tmp_path)
    assert list(parts) == ["train", "validation"]
    assert parts["validation"].class_names == ("bad", "good")
    (tmp_path / "valid.csv").write_text(csv([("so so", "fair")]))
    with refuses("valid.csv: line 2", "'fair'", "none of the 2 classes"):
        read_text_parts(tmp_path)


WRONG = {
    "other columns": (
        {"a.csv": csv(ROWS), "b.csv": csv(ROWS, "review,label")},
        ["b.csv: its columns are 'review', 'label', those of", "a.csv are 'text', 'label'"],
    ),
    "other formats": (
        {"a.csv": csv(ROWS), "b.jsonl": "{}"},
        ["holds .csv files beside .jsonl files; give a pattern"],
    ),
    "a shard is missing": (
        {"train-00000-of-00002.csv": csv(ROWS)},
        ["0 files 00001-of-00002"],
    ),
    "two parts to choose by": (
        {f"{name}.csv": csv(ROWS) for name in ("train", "val", "validation")},
        ["holds the parts 'val', 'validation'; take one of them away"],
    ),
    "no table": ({"notes.txt": "x"}, ["is a folder without tables"]),
}


@pytest.mark.parametrize(("files", "said"), WRONG.values(), ids=WRONG)
def test_files_that_do_not_belong_together_are_named(tmp_path, refuses, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with refuses(tmp_path.name, *said):
        read_text_parts(tmp_path)


def test_a_zip_file_holds_one_table(tmp_path, refuses):
    zipped(tmp_path / "two.zip", {"a.csv": csv(ROWS), "b.csv": csv(ROWS)})
    with refuses("two.zip: holds 2 files (a.csv, b.csv); it must hold one table"):
        read_texts(tmp_path / "two.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with refuses("bad.zip: cannot be read"):
        read_texts(tmp_path / "bad.zip")


def test_a_pattern_that_is_like_no_file_is_named(tmp_path, refuses):
    with refuses("none-*.csv: no file is called so"):
        read_texts(tmp_path / "none-*.csv")
