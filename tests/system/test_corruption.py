"""A finished run whose checkpoints are damaged in many ways: all are found, none is used."""

import json
import os
import random
import shutil

import pytest

import loopax
from loopax import digests
from loopax.errors import CheckpointError
from tests.system.processes import TINY_VAE, command_line, make_images, vae_in_part

STEPS = (10, 20, 30, 40, 50)
SETTINGS = loopax.Checkpoints(every=10, seconds=None, keep=10, best=None)
DRAWS = 6
"""Of each fault; all but the first are slow."""


@pytest.fixture(scope="module")
def train(dataset, line_loss, line_state):
    """Trains in a directory up to 60 steps, or to fewer."""

    def train(run_dir, steps=60):
        return loopax.fit(
            line_state(ema_decay=0.9),
            line_loss,
            dataset.batches(4),
            steps=steps,
            run_dir=run_dir,
            checkpoints=SETTINGS,
            log_every=5,
            progress=True,
            probe_every=None,
        )

    return train


@pytest.fixture(scope="module")
def finished(train, line_state, bits, tmp_path_factory):
    """A run of fifty steps, and the bits of its state at each checkpoint."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(run_dir, 50)
    with loopax.CheckpointStore(run_dir / "checkpoints") as store:
        assert tuple(store.steps) == STEPS
        truth = {step: bits(store.restore(line_state(ema_decay=0.9), step)[0]) for step in STEPS}
    assert len({json.dumps(each) for each in truth.values()}) == len(STEPS)
    return run_dir, truth


@pytest.fixture(scope="module")
def undisturbed(train, finished, bits, tmp_path_factory):
    """What the run becomes with ten steps more: the bits of its state, and its rows."""
    run_dir = tmp_path_factory.mktemp("runs") / "continued"
    shutil.copytree(finished[0], run_dir)
    return bits(train(run_dir).state), (run_dir / "metrics.jsonl").read_bytes()


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run, to damage."""
    return shutil.copytree(finished[0], tmp_path / "run")


# --- What can go wrong with files ---------------------------------------------
# Each function damages the newest checkpoint, and names the steps that are no longer to be trusted.


def a_file(step, draw):
    return draw.choice(sorted(path for path in step.rglob("*") if path.is_file()))


def truncate(checkpoints, draw):
    file = a_file(checkpoints / "50", draw)
    os.truncate(file, draw.randrange(file.stat().st_size))
    return {50}


def flip_a_bit(checkpoints, draw):
    file = a_file(checkpoints / "50", draw)
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return {50}


def zero_a_block(checkpoints, draw):
    """As a disk does; only a block that was not zero is damage."""
    files = [path for path in (checkpoints / "50").rglob("*") if path.is_file()]
    file = draw.choice(sorted(path for path in files if any(path.read_bytes())))
    content = bytearray(file.read_bytes())
    first = next(index for index, byte in enumerate(content) if byte)
    content[first : first + 512] = bytes(len(content[first : first + 512]))
    file.write_bytes(content)
    return {50}


def delete(checkpoints, draw):
    a_file(checkpoints / "50", draw).unlink()
    return {50}


def append(checkpoints, draw):
    with a_file(checkpoints / "50", draw).open("ab") as file:
        file.write(draw.randbytes(draw.randint(1, 5000)))
    return {50}


def add_a_file(checkpoints, draw):
    folders = sorted(path for path in (checkpoints / "50").rglob("*") if path.is_dir())
    (draw.choice(folders) / "new").write_bytes(b"")
    return {50}


def swap_files_of_two_steps(checkpoints, draw):
    other = draw.choice((10, 20, 30, 40))
    pairs = [
        (file, checkpoints / str(other) / file.relative_to(checkpoints / "50"))
        for file in sorted((checkpoints / "50").rglob("*"))
    ]
    differing = [
        (one, two)
        for one, two in pairs
        if one.is_file() and two.is_file() and one.read_bytes() != two.read_bytes()
    ]
    one, two = draw.choice(differing)
    swap(one, two)
    return {50, other}


def swap_two_steps(checkpoints, draw):
    other = draw.choice((10, 20, 30, 40))
    swap(checkpoints / "50", checkpoints / str(other))
    return {50, other}


def swap(one, two):
    one.rename(one.parent / "aside")
    two.rename(one)
    (one.parent / "aside").rename(two)


def replace_by_another_step(checkpoints, draw):
    shutil.rmtree(checkpoints / "50")
    shutil.copytree(checkpoints / str(draw.choice((10, 20, 30, 40))), checkpoints / "50")
    return {50}


def an_empty_folder_in_front(checkpoints, draw):
    newer = draw.randint(51, 10**6)
    (checkpoints / str(newer)).mkdir()
    return {newer}


def a_file_in_front(checkpoints, draw):
    newer = draw.randint(51, 10**6)
    (checkpoints / str(newer)).write_text("not a step")
    return {newer}


def a_copy_in_front(checkpoints, draw):
    newer = draw.randint(51, 10**6)
    shutil.copytree(checkpoints / "50", checkpoints / str(newer))
    return {newer}


def a_link_in_front(checkpoints, draw):
    newer = draw.randint(51, 10**6)
    (checkpoints / str(newer)).symlink_to(draw.choice(("50", "nowhere", "/")))
    return {newer}


def a_link_for_a_file(checkpoints, draw):
    file = a_file(checkpoints / "50", draw)
    file.rename(checkpoints.parent / "elsewhere")
    file.symlink_to(checkpoints.parent / "elsewhere")
    return {50}


def a_link_for_a_folder(checkpoints, draw):
    folder = checkpoints / "50" / draw.choice(("state", "meta"))
    folder.rename(checkpoints.parent / "elsewhere")
    folder.symlink_to(checkpoints.parent / "elsewhere")
    return {50}


def a_link_for_a_step(checkpoints, draw):
    (checkpoints / "50").rename(checkpoints.parent / "elsewhere")
    (checkpoints / "50").symlink_to(checkpoints.parent / "elsewhere")
    return {50}


def a_pipe_for_a_file(checkpoints, draw):
    file = a_file(checkpoints / "50", draw)
    file.unlink()
    os.mkfifo(file)
    return {50}


def several_steps(checkpoints, draw):
    steps = draw.sample((10, 20, 30, 40), draw.randint(1, 3))
    for step in [*steps, 50]:
        delete_from = a_file(checkpoints / str(step), draw)
        os.truncate(delete_from, delete_from.stat().st_size // 2)
    return {50, *steps}


FAULTS = [
    truncate,
    flip_a_bit,
    zero_a_block,
    delete,
    append,
    add_a_file,
    swap_files_of_two_steps,
    swap_two_steps,
    replace_by_another_step,
    an_empty_folder_in_front,
    a_file_in_front,
    a_copy_in_front,
    a_link_in_front,
    a_link_for_a_file,
    a_link_for_a_folder,
    a_link_for_a_step,
    a_pipe_for_a_file,
    several_steps,
]
CASES = [
    pytest.param(
        fault,
        random.Random(f"{fault.__name__} {n}"),
        id=f"{fault.__name__} {n}",
        marks=[pytest.mark.slow] if n else [],
    )
    for fault in FAULTS
    for n in range(DRAWS)
]


@pytest.mark.parametrize(("fault", "draw"), CASES)
def test_what_is_damaged_is_named_and_set_aside_and_the_step_before_it_used(
    fault, draw, copy, finished, bits, line_state
):
    truth, checkpoints = finished[1], copy / "checkpoints"
    bad = fault(checkpoints, draw)
    good = sorted(set(STEPS) - bad)
    set_aside = sorted((step for step in bad if step > good[-1]), reverse=True)
    told = []
    with loopax.CheckpointStore(checkpoints, SETTINGS, told.append) as store:
        state, meta = store.restore(line_state(ema_decay=0.9))
        assert meta["step"] == good[-1]
        assert bits(state) == truth[good[-1]]
        # One line each, from the newest down, which says what is wrong and where it is now.
        assert [line.split(": ")[0] for line in told] == [
            str(checkpoints / str(s)) for s in set_aside
        ]
        assert all(f"kept as damaged-{s}" in line for s, line in zip(set_aside, told, strict=True))
        assert not any("\n" in line for line in told)
        assert store.damaged == sorted(f"damaged-{step}" for step in set_aside)
        assert store.steps == sorted({*STEPS, *bad} - set(set_aside))
        # Of those that still have a number, none gives anything but what was saved.
        for step in set(store.steps) - set(good):
            with pytest.raises(CheckpointError, match=str(checkpoints / str(step))) as caught:
                store.restore(line_state(ema_decay=0.9), step)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [swap_two_steps, a_file_in_front])
def test_who_only_reads_gets_the_step_before_and_moves_nothing(
    fault, copy, finished, bits, line_state
):
    checkpoints = copy / "checkpoints"
    bad, told = fault(checkpoints, random.Random(0)), []
    names = sorted(os.listdir(checkpoints))
    newest = max(set(STEPS) - bad)
    with loopax.CheckpointStore(checkpoints, say=told.append) as store:
        assert bits(store.restore(line_state(ema_decay=0.9))[0]) == finished[1][newest]
    assert all("passed over" in line and "\n" not in line for line in told)
    assert {line.split(": ")[0] for line in told} == {
        str(checkpoints / str(step)) for step in bad if step > newest
    }
    assert sorted(os.listdir(checkpoints)) == names


# --- What it means for a run --------------------------------------------------


@pytest.mark.parametrize("fault", [flip_a_bit, swap_two_steps])
def test_a_run_goes_on_from_the_step_before_as_if_nothing_had_been(
    fault, copy, train, undisturbed, bits, capfd
):
    bad = fault(copy / "checkpoints", random.Random(1))
    run = train(copy)
    assert (bits(run.state), (copy / "metrics.jsonl").read_bytes()) == undisturbed
    said = capfd.readouterr().err
    assert "checkpoints/50: " in said
    assert "kept as damaged-50" in said
    assert f"continuing at step {max(set(STEPS) - bad)} of 60" in said
    # The number that was damaged is given again, to a step that is whole.
    assert digests.damage(copy / "checkpoints" / "50") == []
    assert (copy / "checkpoints" / "damaged-50").exists()
    assert not (copy / "checkpoints" / ".saving").exists()


def test_the_same_step_damaged_twice_is_kept_twice(copy, train, undisturbed, bits):
    for _ in range(2):
        flip_a_bit(copy / "checkpoints", random.Random(2))
        run = train(copy, 50)
    assert {"damaged-50", "damaged-50-2"} <= set(os.listdir(copy / "checkpoints"))
    assert (bits(train(copy).state), (copy / "metrics.jsonl").read_bytes()) == undisturbed
    assert run.step == 50


def test_where_nothing_is_whole_a_run_does_not_begin_again(copy, train, capfd):
    checkpoints = copy / "checkpoints"
    for step in STEPS:
        (checkpoints / str(step) / "meta" / "metadata").unlink()
    before = (copy / "metrics.jsonl").read_bytes()
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"no checkpoint here; .*damaged-50") as caught:
            train(copy)
        assert "\n" not in str(caught.value)
        assert sorted(os.listdir(checkpoints)) == [f"damaged-{step}" for step in STEPS]
    assert (copy / "metrics.jsonl").read_bytes() == before
    said = capfd.readouterr().err
    assert said.count("is missing; kept as damaged-") == len(STEPS)


# --- By the command line ------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A run of the recipe, and the words that go on with it."""
    home = tmp_path_factory.mktemp("vae")
    words = ["train", "vae", "--data", make_images(home / "images.npz"), "--epochs", "3"]
    words += ["--batch-size", "20", "--widths", "256", "--latent", "2"]
    vae_in_part(home / "images.npz", home / "run", 36, **TINY_VAE)
    return home / "run", words


@pytest.fixture
def vae_copy(vae, tmp_path):
    return shutil.copytree(vae[0], tmp_path / "run")


def test_to_sample_a_damaged_step_is_one_line_and_status_4(vae_copy, capfd):
    steps = sorted(int(name) for name in os.listdir(vae_copy / "checkpoints") if name.isdecimal())
    newest = vae_copy / "checkpoints" / str(steps[-1])
    os.truncate(newest / "meta" / "metadata", 10)
    assert command_line(["sample", vae_copy, "--checkpoint", steps[-1]]) == 4
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"{newest}: meta/metadata is not as it was saved" in said
    # The latest that is whole is another one, which is said and used.
    assert command_line(["sample", vae_copy]) == 0
    assert f"{newest}: meta/metadata is not as it was saved; passed over" in capfd.readouterr().err


def test_to_continue_from_nothing_but_damage_is_status_4_each_time(vae, vae_copy, capfd):
    for path in list((vae_copy / "checkpoints").iterdir()):
        flip_a_bit_in(path)
    for _ in range(2):
        capfd.readouterr()
        assert command_line([*vae[1], "--run-dir", vae_copy]) == 4
        said = capfd.readouterr().err
        assert "Traceback" not in said
        last = said.splitlines()[-1]
        assert "there is no checkpoint here; damaged-" in last
        assert "cannot be trusted" in last


def flip_a_bit_in(step):
    file = step / "meta" / "metadata"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def test_rows_that_were_damaged_are_said_to_be_lost_and_the_state_is_as_it_was(
    copy, train, undisturbed, bits, capfd
):
    file = copy / "metrics.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:4], b"\xff\xfe{}\n", *rows[5:]]))
    assert bits(train(copy).state) == undisturbed[0]
    said = capfd.readouterr().err
    assert f"{file}: has 9 of the 10 rows logged up to step 50; the others are lost" in said
    whole = undisturbed[1].splitlines(keepends=True)
    assert file.read_bytes() == b"".join([*whole[:4], *whole[5:]])


def test_a_link_where_a_save_is_made_is_removed_and_not_followed(copy, train, undisturbed, bits):
    elsewhere = copy.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (copy / "checkpoints" / ".saving").symlink_to(elsewhere)
    (copy / "checkpoints" / ".deleting").symlink_to(elsewhere)
    assert bits(train(copy).state) == undisturbed[0]
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
