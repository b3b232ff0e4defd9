"""What is compiled is kept for the next process, within bounds, and only where it is asked for."""

import os
import subprocess
import sys

from loopax import caches

TRAIN = """
import jax, jax.numpy as jnp, numpy as np, optax, loopax
from jax import monitoring
heard = []
monitoring.register_event_listener(lambda event, **_: heard.append(event.rpartition("/")[2]))
loopax.caches.keep_compiled()
state = loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.1))
loss_fn = lambda params, batch, rngs: (params["w"] - batch) ** 2
loopax.fit(state, loss_fn, [np.float32(1)] * 4, steps=3, progress=False)
print(heard.count("compile_requests_use_cache"), heard.count("cache_hits"))
"""


def test_a_second_process_reads_all_that_the_first_has_compiled(tmp_path):
    elsewhere = {name: it for name, it in os.environ.items() if "JAX_" not in name}

    def started():
        environment = {**elsewhere, "LOOPAX_CACHE": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True
        )
        return [int(count) for count in done.stdout.split()] or done.stderr

    asked, found = started()
    assert asked > found == 0
    assert started() == [asked, asked]


def test_what_was_used_longest_ago_makes_room(tmp_path):
    for number in range(4):
        file = tmp_path / "kind" / f"{number}-cache"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (number, number))
    caches._make_room(tmp_path, limit=400)
    assert len(list(tmp_path.rglob("*-cache"))) == 4
    caches._make_room(tmp_path, limit=399)
    assert sorted(file.name for file in tmp_path.rglob("*-cache")) == ["3-cache"]
