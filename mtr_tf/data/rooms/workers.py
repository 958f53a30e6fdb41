# SPDX-License-Identifier: Apache-2.0
"""Renders examples in processes of their own, which never import TensorFlow.

A worker runs `main` and writes the arrays of the examples FIRST, FIRST + STEP, ... to
its standard output, in the order of `layout.arrays`. `data.parts` says how it is run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO

import numpy as np

from mtr_tf.data import parts
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import render
from mtr_tf.data.rooms import sampling
from mtr_tf.errors import present

_MIN_EXAMPLES = 64  # Fewer examples than this are not worth a process.


def example(seed: int, split: int, index: int, size: int) -> dict[str, np.ndarray]:
    """One example: a pure function of its arguments (see `render`)."""
    scene = sampling.sample(seed, split, index)
    return render.render(scene, size, size, key=(seed, split, index))


def examples(
    seed: int, split: int, count: int, size: int, processes: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the first `count` examples of a split, in order.

    Args:
      seed: of the data set.
      split: position of the split's name in `scene.SPLITS`.
      count: how many.
      size: height and width in pixels.
      processes: how many to render with; None for one per core, at most
        `parts.MAX_PROCESSES`.

    Raises:
      WorkerError: a worker has died.
    """
    if processes is None:
        processes = parts.processes_for(count, _MIN_EXAMPLES)
    if processes < 2:
        yield from (example(seed, split, index, size) for index in range(count))
        return
    with contextlib.ExitStack() as stack:
        pipes = []
        for first in range(processes):
            numbers = (seed, split, count, size, first, processes)
            process = stack.enter_context(parts.worker(__name__, *numbers))
            pipes.append(present(process.stdout, "a pipe"))
        for index in range(count):
            yield _read(pipes[index % processes], size)


def _read(pipe: IO[bytes], size: int) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (shape, kind) in layout.arrays(size).items():
        array = np.empty(shape, kind)
        data = pipe.read(array.nbytes)
        if len(data) != array.nbytes:
            raise parts.WorkerError(
                "a process that renders rooms ended early; its error is above, unless "
                "it was killed (perhaps for lack of memory)"
            )
        array.ravel()[:] = np.frombuffer(data, kind)
        arrays[name] = array
    return arrays


def main() -> None:
    """Writes examples to standard output until done or nobody reads any more.

    The command line is SEED SPLIT COUNT SIZE FIRST STEP.
    """
    seed, split, count, size, first, step = map(int, sys.argv[1:])
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for index in range(first, count, step):
            arrays = example(seed, split, index, size)
            for name in layout.arrays(size):
                sys.stdout.buffer.write(arrays[name].tobytes())
        sys.stdout.buffer.flush()
