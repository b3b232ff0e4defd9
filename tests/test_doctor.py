from importlib import metadata

import pytest

from loopax.cli import main


def test_a_machine_on_which_all_is_well(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "runs"), "--seconds", "0.1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == ["versions", "devices", "processes", "cache", "disk", "rate"]
    assert "steps/s" in lines[-1]
    assert last == "a run would go well here"
    assert not [*tmp_path.iterdir()]  # the small run is gone


@pytest.mark.parametrize(
    ("needed", "place", "said"),
    [
        (["numpy>=99"], "runs", "and >=99 is needed; pip install -U loopax"),
        (["numpy>=1"], "file/runs", "/file is a file; name a directory\n"),
    ],
)
def test_what_would_stop_a_run_is_said_with_what_would_be_right(
    tmp_path, capsys, monkeypatch, needed, place, said
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    assert main(["doctor", str(tmp_path / place)]) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.endswith("a run would fail here\n")
