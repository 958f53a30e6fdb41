# SPDX-License-Identifier: Apache-2.0
"""How many examples of one's own data a second are read by several readers.

    python benchmarks/readers.py

The data set sleeps for each example, like one that waits for a disk or a network.
Batches come as in training. Versions before the setting "readers" had one reader.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import numpy as np
import timing

from mtr_tf.data import batching
from mtr_tf.data.custom import reading

_COLUMNS = {"readers": "d", "images/s": ".0f", "times one": ".2f"}


class Slow:
    """Examples that take their time."""

    def __init__(self, count: int, seconds: float):
        self._count, self._seconds = count, seconds
        self._image = np.zeros((64, 64, 3), np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict:
        time.sleep(self._seconds)
        depth = np.full((64, 64), row, np.float32)
        return {"image": self._image, "targets": {"depth": depth}}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON."""
    parser = timing.parser(__doc__, "readers", rounds=3)
    parser.add_argument("--readers", default="1,4,8", help="comma-separated")
    parser.add_argument("--sleep_ms", type=float, default=10, help="for each example")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="of a round")
    args = parser.parse_args(argv)
    counts = [int(count) for count in args.readers.split(",")]
    speeds = {count: [] for count in counts}
    for _ in range(args.rounds):
        for count in counts:
            speeds[count].append(_speed(args, count))
    medians = {count: statistics.median(rates) for count, rates in speeds.items()}
    records = [
        {
            "readers": count,
            "images/s": medians[count],
            "times one": medians[count] / medians[counts[0]],
        }
        for count in counts
    ]
    timing.finish(args, records, _COLUMNS)


def _speed(args: argparse.Namespace, readers: int) -> float:
    """Images per second in one round."""
    examples = args.batches * args.batch_size
    dataset = {"train": Slow(examples, args.sleep_ms / 1000), "readers": readers}
    dataset |= {"mean": [0.5] * 3, "std": [0.5] * 3, "ranges": {"depth": (0, 1)}}
    source = reading.open_given("slow", dataset)
    batches = batching.train_batches(
        source.columns("train"),
        ("depth",),
        batch_size=args.batch_size,
        seed=0,
        first_step=0,
        last_step=args.batches,
    )
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["index"])
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
