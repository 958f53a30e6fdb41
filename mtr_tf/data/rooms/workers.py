# SPDX-License-Identifier: Apache-2.0
"""Renders examples in processes of their own, which never import TensorFlow.

A worker runs `main` and writes the arrays of the examples FIRST, FIRST + STEP, ... to
its standard output, in the order of `layout.arrays`. Plain subprocesses, rather than
`multiprocessing`: a user's script needs no `if __name__ == "__main__"`, and nothing is
forked from under TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from mtr_tf.data import parts
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import render
from mtr_tf.data.rooms import sampling

MAX_PROCESSES = 8
_FEW = 64  # Fewer examples than this are not worth a process.


def example(seed: int, split: int, index: int, size: int) -> dict[str, np.ndarray]:
    """One example: a pure function of its arguments (see `render`)."""
    drawn = sampling.sample(seed, split, index)
    return render.render(drawn, size, size, key=(seed, split, index))


def examples(
    seed: int, split: int, count: int, size: int, processes: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the first `count` examples of a split, in order.

    Args:
      seed: of the data set.
      split: position of the split's name in `scene.SPLITS`.
      count: how many.
      size: height and width in pixels.
      processes: how many render; None for one per core, at most MAX_PROCESSES.

    Raises:
      RuntimeError: a worker has died.
    """
    if processes is None:
        processes = min(parts.cores(), MAX_PROCESSES) if count >= _FEW else 1
    if processes < 2:
        yield from (example(seed, split, index, size) for index in range(count))
        return
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(_worker(seed, split, count, size, first, processes))
            for first in range(processes)
        ]
        for index in range(count):
            yield _read(pipes[index % processes], size)


@contextlib.contextmanager
def _worker(*numbers: int) -> Iterator[BinaryIO]:
    """Starts a worker, gives its output, and stops it."""
    root = pathlib.Path(__file__).resolve().parents[3]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    start = f"from {__name__} import main; main()"
    command = [sys.executable, "-c", start, *map(str, numbers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        yield process.stdout
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _read(pipe: BinaryIO, size: int) -> dict[str, np.ndarray]:
    found = {}
    for name, (shape, kind) in layout.arrays(size).items():
        array = np.empty(shape, kind)
        data = pipe.read(array.nbytes)
        if len(data) != array.nbytes:
            raise RuntimeError(
                "A process that renders rooms has ended early; its error is above."
            )
        array.ravel()[:] = np.frombuffer(data, kind)
        found[name] = array
    return found


def main() -> None:
    """Writes examples to standard output until done or nobody reads any more.

    The command line is SEED SPLIT COUNT SIZE FIRST STEP.
    """
    seed, split, count, size, first, step = map(int, sys.argv[1:])
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for index in range(first, count, step):
            made = example(seed, split, index, size)
            for name in layout.arrays(size):
                sys.stdout.buffer.write(made[name].tobytes())
        sys.stdout.buffer.flush()
