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

MOST = 256  # Images. More are no faster.
_ROOM = 4  # A batch fits if one that is larger by a fourth part of it does.


def fitting(
    models: Sequence[Callable[..., Any]],
    columns: Columns,
    count: int,
    strategy: tf.distribute.Strategy,
) -> int:
    """The most images per replica with whose gradients the devices can work.

    Tried from above, each time half as many, with one pass forwards and backwards that
    XLA does not compile.

    Args:
      models: Images in [0, 1] -> outputs; the gradients are those of each of them.
      columns: Whose images are used, over and over if they are too few.
      count: No more images are wanted than that; at least 1.
      strategy: Where they are computed; each of its replicas takes all of the images.

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
    """`run(size)`, or of half the size, and so on, until a device has memory for it.

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
    """One pass of so many images forwards and backwards; see `fitting`."""

    def of_replica(images: tf.Tensor) -> tf.Tensor | None:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = tf.nest.flatten(stateless.outputs(model, images))
            outputs = [tf.cast(output, tf.float32) for output in outputs]
            loss = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
        return tape.gradient(loss, images)

    images = batching.images_of(columns, np.arange(size) % len(columns))
    tf.function(strategy.run)(of_replica, (tf.constant(images),))
