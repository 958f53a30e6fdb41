# SPDX-License-Identifier: Apache-2.0
"""Measures how many rooms one core renders per second, with all stored targets.

Run `python benchmarks/rooms_speed.py [SCENES]`. It uses one thread. Every size takes
its turn in three rounds, and the best round counts, so that other work on the machine
has little effect.
"""

from __future__ import annotations

import sys
import time

import timing

from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import workers

ROUNDS = 3
GOALS = {64: 150}


def measure(size: int, scenes: int) -> float:
    """Images per second of one round."""
    start = time.perf_counter()
    for index in range(scenes):
        workers.example(0, 0, index, size)
    return scenes / (time.perf_counter() - start)


def main(scenes: int) -> None:
    """Prints the table."""
    best_speeds = dict.fromkeys(layout.SIZES, 0.0)
    for _ in range(ROUNDS):
        for size in best_speeds:
            best_speeds[size] = max(best_speeds[size], measure(size, scenes))
    records = [
        {"size": size, "images/s per core": speed, "goal": GOALS.get(size)}
        for size, speed in best_speeds.items()
    ]
    columns = {"size": "", "images/s per core": ".0f", "goal": ""}
    print(timing.table(records, columns))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
