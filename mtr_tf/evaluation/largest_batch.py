# SPDX-License-Identifier: Apache-2.0
"""How many images a device takes at a time: `--batch_size=auto`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np
import tensorflow as tf

from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.errors import is_out_of_memory
from mtr_tf.models import stateless

T = TypeVar("T")

MOST = 256  # Images; more are no faster.
_ROOM = 4  # A batch fits if one larger by a fourth fits.


def fitting(
    models: Sequence[Callable[..., Any]],
    columns: Columns,
    count: int,
    strategy: tf.distribute.Strategy,
) -> int:
    """The largest number of images per replica whose gradients fit into memory.

    Sizes are tried from above, halved each time, with one pass forwards and backwards
    that XLA does not compile.

    Args:
      models: Images in [0, 1] -> outputs; each of them is tried.
      columns: Their images are used, repeatedly if there are too few.
      count: The largest number to return; at least 1.
      strategy: Each of its replicas computes the gradients of all the images.

    Raises:
      tf.errors.OpError: Not even one image fits.
    """

    def fits(size: int) -> int:
        for model in models:
            _pass(model, columns, size + -(-size // _ROOM), strategy)
        return size

    with stateless.unchanged(*models):
        return halving(fits, min(count, MOST))


def halving(run: Callable[[int], T], size: int) -> T:
    """Returns `run(size)`, with the size halved until the device has enough memory.

    Raises:
      tf.errors.OpError: `run` raises it, or has too little memory for one image.
    """
    while True:
        try:
            return run(size)
        except tf.errors.OpError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size = -(-size // 2)


def _pass(
    model: Callable[..., Any],
    columns: Columns,
    size: int,
    strategy: tf.distribute.Strategy,
) -> None:
    """One pass of `size` images forwards and backwards; see `fitting`."""

    def gradient(images: tf.Tensor) -> tf.Tensor | None:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = tf.nest.flatten(stateless.outputs(model, images))
            outputs = [tf.cast(output, tf.float32) for output in outputs]
            loss = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
        return tape.gradient(loss, images)

    images = batching.images_of(columns, np.arange(size) % len(columns))
    tf.function(strategy.run)(gradient, (tf.constant(images),))
