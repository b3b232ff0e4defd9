"""What it costs many processes to agree once a turn: the way that `decide` takes, without devices.

    python -m benchmarks.turns [--processes 2 16 64 256]

Process 0 sets a small value in the store of JAX's coordination service, and every other one waits
for it. Here each process is a thread with a connection of its own, all on this machine, so that
what is measured is what the one service has to do.
"""

import argparse
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from jax._src.lib import _jax

TURNS = 20


def seconds_per_turn(count: int) -> float:
    """The median time until all have the answer of process 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, count)
    clients = [
        _jax.get_distributed_runtime_client(address, index, init_timeout=120)
        for index in range(count)
    ]
    arrived = threading.Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda client: client.connect(), clients))

        def turns(index: int) -> list[float]:
            durations = []
            for turn in range(TURNS):
                arrived.wait()
                begin = time.perf_counter()
                if index == 0:
                    clients[0].key_value_set(f"turn/{turn}", "[1000, 0, 0, 0, 0]")
                else:
                    clients[index].blocking_key_value_get(f"turn/{turn}", 60_000)
                arrived.wait()
                durations.append(time.perf_counter() - begin)
            return durations

        measured = next(iter(threads.map(turns, range(count))))
        list(threads.map(lambda client: client.shutdown(), clients))
    service.shutdown()
    return statistics.median(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 16, 64, 256])
    print("| processes | until all have the answer |\n|---:|---:|")
    for count in parser.parse_args().processes:
        print(f"| {count} | {1e3 * seconds_per_turn(count):.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
