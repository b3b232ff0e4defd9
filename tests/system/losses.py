"""Kills single processes of a run again and again, and tells how the others ended.

    python -m tests.system.losses DIR [--kills 30] [--starts 50] [--processes 2] [--seed 0]

Each time a random process is killed at a random moment, the others must end by themselves with
status 9 and a line that names it; all are started again. At the end the run is trained to a last
step, and so is one that nobody has disturbed: both must have the same bits. Then runs are started
in which one process stands still again and again; all of them must come to their end.
"""

import argparse
import random
import signal
import time
from pathlib import Path

from tests import compiled
from tests.system.many import LONG, member
from tests.system.processes import Together, steps_in
from tests.system.test_processes import bits

PATIENCE = 60.0
"""Seconds within which the others must have ended."""


def kill_one(count, home, draw, victim=None):
    """Starts all, kills one; how long the others took to end, and what they said last."""
    wanted = max(steps_in(home / "killed"), default=0) + draw.randrange(40)
    started = Together(member, count, home, home, [("killed", LONG)])
    victim = draw.randrange(count) if victim is None else victim
    others = [each for i, each in enumerate(started.processes) if i != victim]
    try:
        started.processes[victim].wait_for(
            lambda: max(steps_in(home / "killed"), default=0) >= wanted, "another checkpoint"
        )
        time.sleep(draw.random())
        began = time.monotonic()
        started.processes[victim].send(signal.SIGKILL)
        codes = [each.wait() for each in others]
        seconds = time.monotonic() - began
    finally:
        for each in started.processes:
            each.__exit__()
    last = {each.said.splitlines()[-1] for each in others}
    assert set(codes) == {9}, (victim, codes, last)
    assert all(f"process {victim} of {count} on " in line for line in last), last
    assert seconds < PATIENCE, seconds
    return victim, seconds, last


def start_unequal(count, home, draw):
    """Starts all, of which one is slow, and waits for the end of their run."""
    steps = max(steps_in(home / "unequal"), default=0) + 20
    started = Together(member, count, home, home, [("unequal", steps)])
    slow = draw.choice(started.processes)
    while slow.code is None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            slow.send(number)
            time.sleep(draw.random() / 2)
    codes = started.wait()
    assert set(codes) == {0}, (codes, [each.said for each in started.processes])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    compiled.share(options.home / "compiled")
    draw = random.Random(options.seed)
    for number in range(options.kills):
        victim, seconds, last = kill_one(options.processes, options.home, draw)
        print(f"{number}: process {victim}, {seconds:.1f} s: {min(last)}", flush=True)
    if options.kills:
        total = max(steps_in(options.home / "killed")) + 50
        runs = [("killed", total), ("undisturbed", total)]
        ended = Together(member, options.processes, options.home, options.home, runs).wait()
        assert set(ended) == {0}
        assert bits(options.home / "killed") == bits(options.home / "undisturbed")
        print(f"{options.kills} kills, and the same bits at step {total:,}", flush=True)
    for number in range(options.starts):
        start_unequal(options.processes, options.home, draw)
        print(f"start {number} has come to its end", flush=True)


if __name__ == "__main__":
    main()
