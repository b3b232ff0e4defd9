"""Digests of a checkpoint's files: any damage is seen and named, and nothing else is."""

import os
import shutil
import subprocess

import pytest

from loopax import digests


@pytest.fixture
def sealed(tmp_path):
    """A folder as a checkpoint is, sealed."""
    directory = tmp_path / "100"
    for name, content in {
        "meta/metadata": b'{"step": 100}',
        "state/d/0a1b": bytes(range(256)) * 40,
        "state/d/empty": b"",
        "state/name with  two spaces": b"x",
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    digests.seal(directory)
    assert digests.damage(directory) == []
    return directory


def flip(path, _=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path, elsewhere):
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def pipe(path, _):
    path.unlink()
    os.mkfifo(path)


def folder(path, _):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "flipped bit": (flip, "is not as it was saved"),
    "last byte gone": (lambda p, _: p.write_bytes(p.read_bytes()[:-1]), "is not as it was saved"),
    "one byte more": (lambda p, _: p.write_bytes(p.read_bytes() + b"\0"), "is not as it was saved"),
    "emptied": (lambda p, _: p.write_bytes(b""), "is not as it was saved"),
    "deleted": (lambda p, _: p.unlink(), "is missing"),
    "a link to the same bytes": (link, "is not a file of its own"),
    "a pipe, which would never end": (pipe, "is not a file of its own"),
    "a folder": (folder, "is missing"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_the_file_that_was_damaged_is_named(sealed, damage, said):
    damage(sealed / "state" / "d" / "0a1b", sealed.parent / "elsewhere")
    assert digests.damage(sealed) == [f"state/d/0a1b {said}"]


@pytest.mark.parametrize("damage", [d for d, _ in DAMAGE.values()], ids=DAMAGE.keys())
def test_damage_to_the_list_itself_is_seen(sealed, damage):
    damage(sealed / digests.NAME, sealed.parent / "elsewhere")
    assert digests.damage(sealed)


def test_a_list_that_is_shorter_or_names_other_places_is_not_believed(sealed):
    lines = (sealed / digests.NAME).read_text().splitlines(keepends=True)
    for others in (lines[:-1], lines[::-1], [*lines, lines[0]], [*lines, "no digest\n"]):
        (sealed / digests.NAME).write_text("".join(others))
        assert digests.damage(sealed)
    outside = lines[0][:66] + "../../elsewhere\n"
    (sealed / digests.NAME).write_text("".join([outside, *lines]))
    assert digests.damage(sealed) == ["../../elsewhere is missing"]


def test_a_folder_that_is_a_link_or_no_folder_is_no_checkpoint(sealed, tmp_path):
    (tmp_path / "link").symlink_to(sealed)
    (tmp_path / "file").write_text("")
    for name in ("link", "file", "absent"):
        assert digests.damage(tmp_path / name) == ["it is not a directory of its own"]


def test_other_programs_can_check_it_too(sealed):
    def check():
        return subprocess.run(
            ["sha256sum", "--check", "--quiet", digests.NAME],
            cwd=sealed,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (check().returncode, check().stdout) == (0, "")
    flip(sealed / "meta" / "metadata")
    assert (check().returncode, check().stdout) == (1, "meta/metadata: FAILED\n")


def test_a_copy_elsewhere_is_whole_as_well(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "copy" / "100")
    assert digests.damage(tmp_path / "copy" / "100") == []


def test_what_was_added_is_named_wherever_it_lies(sealed):
    (sealed / "state" / "d" / "new").write_text("x")
    (sealed / "link").symlink_to("/")
    assert digests.damage(sealed) == [
        "'link' does not belong there",
        "'state/d/new' does not belong there",
    ]


def test_all_of_several_damages_are_named(sealed):
    flip(sealed / "meta" / "metadata")
    flip(sealed / "state" / "d" / "0a1b")
    (sealed / "state" / "d" / "empty").unlink()
    assert [line.split()[0] for line in digests.damage(sealed)] == [
        "state/d/empty",
        "meta/metadata",
        "state/d/0a1b",
    ]
