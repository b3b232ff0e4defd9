"""A report is one file that says what it was given, runs nothing and asks for nothing."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import loopax
from loopax.cli import main
from loopax.errors import ConfigError, StorageError
from loopax.report import Figures, Picture, Section, Table, Text, write_report

HOSTILE = "<script>alert('&amp;')</script>\" onerror=\"x"
OUTSIDE = re.compile(r"https?:|//[a-z]|url\(|@import|srcset|javascript:", re.IGNORECASE)

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes and the text within."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def texts(self, tag):
        return [text.strip() for name, _, text in self.elements if name == tag]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


def page_of(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.wrong, "elements are closed in order"
    assert not page.open, "and all of them are"
    assert not OUTSIDE.search(re.sub(r"data:image/png;base64,[\w+/=]+", "", text))
    return page


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "<b>.png"
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path)
    return path


def test_every_kind_of_block_is_shown_and_indexed(picture, tmp_path):
    sections = [
        Section(
            "First",
            [
                Text("One.\n\nTwo."),
                Figures([("accuracy", "99 %", "of 7"), ("loss", "3", "")]),
            ],
        ),
        Section("Nothing", []),
        Section(
            "Second",
            [
                Picture(picture, "A picture"),
                Table(("", "train", "of"), [("loss", "1.5 ± 0.1", "a"), ("kl", "2", "b")], "T"),
            ],
        ),
    ]
    path = tmp_path / "new" / "report.html"
    write_report(path, "A title", sections, subtitle="below")
    page = page_of(path)
    assert page.texts("h1") == page.texts("title") == ["A title"]
    assert page.texts("h2") == page.texts("a") == ["First", "Second"]
    assert page.texts("p") == ["below", "One.", "Two."]
    assert page.texts("dt") == ["accuracy", "loss"]
    assert page.texts("dd") == ["99 %", "of 7", "3"]
    assert page.texts("caption") == ["T"]
    assert page.texts("tr") == ["train\nof", "loss\n1.5 ± 0.1\na", "kl\n2\nb"]
    numbers = [attributes.get("class") == "number" for attributes in page.attributes("td")]
    assert numbers == [True, False, True, False], "numbers are aligned, words are not"
    heads = [attributes["data-head"] for attributes in page.attributes("td")]
    assert heads == ["train", "of"] * 2, "where rows become blocks, each cell says what it is"
    ids = [attributes["id"] for attributes in page.attributes("section")]
    assert [attributes["href"] for attributes in page.attributes("a")] == [f"#{id}" for id in ids]
    (image,) = page.attributes("img")
    head, _, content = image["src"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == picture.read_bytes()
    assert image["alt"] == "A picture"
    assert page.texts("figcaption") == ["A picture"]


def test_nothing_that_it_is_given_becomes_markup(picture, tmp_path):
    blocks = [
        Text(HOSTILE),
        Figures([(HOSTILE, HOSTILE, HOSTILE)]),
        Table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)], HOSTILE),
        Picture(picture, HOSTILE),
    ]
    path = tmp_path / "report.html"
    write_report(path, HOSTILE, [Section(HOSTILE, blocks)], subtitle=HOSTILE)
    page = page_of(path)
    assert not page.attributes("script")
    assert page.attributes("img")[0].keys() == {"src", "alt"}
    assert page.attributes("img")[0]["alt"] == HOSTILE
    for tag in ("title", "h1", "h2", "a", "dt", "dd", "caption", "td", "figcaption"):
        assert set(page.texts(tag)) == {HOSTILE}, tag
    assert set(page.texts("th")) == {HOSTILE}
    assert set(page.texts("p")) == {HOSTILE}


def test_the_page_forbids_itself_everything_but_its_own_pictures(tmp_path):
    write_report(tmp_path / "report.html", "Title", [])
    page = page_of(tmp_path / "report.html")
    (policy,) = [m["content"] for m in page.attributes("meta") if "http-equiv" in m]
    assert re.sub(r"\s+", " ", policy) == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )
    assert not page.attributes("link")


def test_a_picture_that_is_none_leaves_the_report_as_it_was(picture, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, "Title", [])
    before = path.read_bytes()
    (tmp_path / "notes.txt").write_text("words")
    for name, said in (("gone.png", "cannot be read"), ("notes.txt", "not a picture")):
        blocks = [Picture(tmp_path / name, "")]
        with pytest.raises(ConfigError, match=said) as caught:
            write_report(path, "Title", [Section("Pictures", blocks)])
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".partial-*"))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", "Title", [])


def test_equal_content_is_an_equal_file(picture, tmp_path):
    files = [tmp_path / "one.html", tmp_path / "two.html"]
    for file in files:
        blocks = [Picture(picture, "é ü 中")]
        write_report(file, "Title", [Section("S", blocks)])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_naming_its_blocks_loads_neither_jax_nor_jinja():
    code = (
        "import sys, loopax; loopax.report.write_report, loopax.report.Section; "
        "print({'jax', 'jinja2', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_first_column_names_its_rows_also_by_numbers(tmp_path):
    rows = Table(("class", "right", "seen"), [("0", "99.1%", ""), ("1", "", "12")])
    write_report(tmp_path / "report.html", "Title", [Section("S", [rows])])
    heads = page_of(tmp_path / "report.html").attributes("th")
    assert [(head["scope"], head.get("class")) for head in heads] == [
        ("col", None),
        ("col", "number"),
        ("col", "number"),
        ("row", None),
        ("row", None),
    ]


# --- Of any run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A program's own run, which a hook has ended, and which was started twice."""
    values = np.float32([1, 2])

    def loss_fn(params, batch, rngs):
        return ((params["w"] - batch) ** 2).mean(), {"w": params["w"]}

    def end(run):
        if run.step == 12:
            run.stop("w is good enough")

    def fit(steps):
        return loopax.fit(
            loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.1), seed=5),
            loss_fn,
            [values] * 4,
            steps=steps,
            run_dir=tmp_path_factory.getbasetemp() / "stopped",
            evaluation={"validation": [values]},
            hooks=loopax.Hook(end, 4),
            config={"net": {"widths": [4, 2]}},
            log_every=4,
            progress=False,
        )

    fit(8)
    return fit(40).dir.path


def test_any_run_has_a_report(stopped, capsys):
    assert main(["report", str(stopped)]) == 0
    assert capsys.readouterr().out == f"{stopped / 'report.html'}\n"
    page = page_of(stopped / "report.html")
    assert page.texts("h1") == ["Run stopped"]
    sections = ["Summary", "Metrics", "Checkpoints", "Time", "Configuration", "Provenance"]
    assert page.texts("h2") == sections
    story = next(text for text in page.texts("p") if "has come to" in text)
    assert "step 12 of 40" in story
    assert story.endswith("It was stopped at step 12: w is good enough.")
    assert page.texts("dt") == ["validation/loss, best", "validation/loss, latest"]
    assert len(page.attributes("img")) == 1
    rows = [row.split("\n") for row in page.texts("tr")]
    assert ["net.widths", "4, 2"] in rows
    assert ["random seed", "5"] in rows
    assert [row[::2] for row in rows if row[0] == "12"] == [["12", "latest, best"]]
    assert "This run was interrupted and went on" in page.texts("caption")


def test_what_went_wrong_is_in_the_report(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    origin = {"what": "nan", "primitive": "log", "source": "mine.py:3"}
    autopsy = {"step": 13, "metrics": {"loss": "nan"}, "non_finite": {}, "origin": origin}
    (tmp_path / "run" / "autopsy.json").write_text(json.dumps(autopsy))
    page = page_of(loopax.report.of_run(tmp_path / "run"))
    assert "What went wrong" in page.texts("h2")
    assert "origin.source\nmine.py:3" in page.texts("tr")
