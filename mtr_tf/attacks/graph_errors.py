# SPDX-License-Identifier: Apache-2.0
"""Values that are wrong, said in our sentences, in graphs too.

A graph cannot raise `InputError`. So the assertion in it carries the sentence, and who
calls the graph turns TensorFlow's error into ours: `launch`, `Evaluator.run` and the
binaries do. XLA drops assertions: there values go unchecked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import tensorflow as tf

from mtr_tf.errors import MARK
from mtr_tf.errors import InputError
from mtr_tf.errors import input_error_within

# Parts of a sentence, joined by spaces: text, and numbers that are known when it runs.
Words = Callable[[], Sequence[str | tf.Tensor]]


@tf.autograph.experimental.do_not_convert  # There is nothing to.
def require(holds: tf.Tensor, words: Words) -> tf.Tensor:
    """Raises `InputError` unless `holds`; in a graph the assertion that stands for it.

    Args:
      holds: bool, [].
      words: Returns the sentence; what it computes is computed only to be said.

    Returns:
      `holds`, to depend on.
    """
    if tf.executing_eagerly():
        if not bool(holds):
            parts = [p if isinstance(p, str) else f"{p.numpy():g}" for p in words()]
            raise InputError(_joined(parts))
        return holds

    def fail():
        parts = list(words())
        parts[0] = MARK + parts[0]
        told = tf.debugging.Assert(False, parts, summarize=1)
        with tf.control_dependencies([told]):
            return tf.constant(False)

    return tf.cond(holds, lambda: tf.constant(True), fail)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, failed assertions of `require` are raised as `InputError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        told = input_error_within(error)
        if told is None:
            raise
        raise InputError(told) from error


def _joined(parts: Sequence[str]) -> str:
    return " ".join(parts).replace(" ;", ";")
