# SPDX-License-Identifier: Apache-2.0
"""Whether targets, masks and outputs fit each other, checked eagerly and in graphs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import graph_errors
from mtr_tf.errors import InputError

Tensors = Mapping[str, tf.Tensor]


def check_batch(names: Sequence[str], targets: Tensors, masks: Tensors) -> None:
    """Raises InputError where a target or mask has not the shape that its task has."""
    for name in names:
        target, mask = targets[name].shape, masks[name].shape
        discrete = tasks_lib.TASKS[name].discrete
        axes = "[batch, H, W]" if discrete else "[batch, H, W, channels]"
        if not target.is_compatible_with([None] * (3 if discrete else 4)):
            raise InputError(
                f"The target of {name!r} must be {axes}, got shape {target}; reshape "
                "it so."
            )
        wanted = target[:3]
        if not mask.is_compatible_with(wanted):
            raise InputError(
                f"The mask of {name!r} must have one number per pixel of its target, "
                f"shape {wanted}, got {mask}; give it that shape."
            )


@tf.autograph.experimental.do_not_convert  # There is nothing to.
def checked(
    names: Sequence[str],
    outputs: Tensors,
    batch: Mapping[str, Tensors],
    progress: tf.Tensor | float,
) -> dict[str, tf.Tensor]:
    """Returns the tasks' outputs, once they fit their targets, and labels the outputs.

    Shapes are compared when the graph is built, those that are not known then when it
    runs. Labels are looked at where a run begins and ends, which costs next to nothing
    beside the model; those of masked pixels may be anything.

    Raises:
      InputError: They do not fit (see `in_words` for graphs).
    """
    found = {}
    for name in names:
        output = tf.convert_to_tensor(outputs[name])
        target, mask = batch["targets"][name], batch["masks"][name]
        discrete = tasks_lib.TASKS[name].discrete
        _check_shape(name, output, target, discrete)
        checks = _same_size(name, output, target, mask)
        if discrete:
            checks.append(_labels(name, output, target, mask, progress))
        with tf.control_dependencies([] if tf.executing_eagerly() else checks):
            found[name] = tf.identity(output)
    return found


def _check_shape(name: str, output, target, discrete: bool) -> None:
    wanted = target.shape[:3].concatenate([None]) if discrete else target.shape
    if not output.shape.is_compatible_with(wanted):
        axes = "[batch, H, W, classes]" if discrete else "its target's shape"
        raise InputError(
            f"The output of {name!r} must be {axes}, here {wanted}, got "
            f"{output.shape}; bring model, images and targets to one size."
        )


def _same_size(name: str, output, target, mask) -> list[tf.Tensor]:
    """Checks of what the shapes do not tell before the graph runs."""
    known = output.shape, target.shape, mask.shape
    if all(shape.is_fully_defined() for shape in known):
        return []
    sizes = [tf.shape(tensor)[:3] for tensor in (output, target, mask)]
    same = tf.reduce_all(tf.equal(sizes[0], sizes[1]) & tf.equal(sizes[1], sizes[2]))

    def words():
        parts = [f"Images, output, target and mask of {name!r} must be of one size"]
        for kind, size in zip(("output", "target", "mask"), sizes, strict=True):
            parts += [f"; got {kind}s of", size[0], "x", size[1], "x", size[2]]
        return [*parts, "(batch x height x width)."]

    return [graph_errors.require(same, words)]


def _labels(name: str, output, target, mask, progress) -> tf.Tensor:
    """The check that labels are classes, where the mask is not zero."""
    classes = tf.shape(output)[-1]

    def wrong():
        labels = tf.cast(target, tf.int64)
        outside = (labels < 0) | (labels >= tf.cast(classes, tf.int64))
        return outside & tf.cast(mask, tf.bool)

    def words():
        labels = tf.cast(target, tf.int64)
        one = tf.reduce_max(tf.where(wrong(), labels, labels.dtype.min))
        return [
            f"Labels of {name!r} must be below its number of classes,",
            classes,
            ", and not negative, where the mask is not zero; got",
            one,
            "; mask such pixels.",
        ]

    progress = tf.convert_to_tensor(progress, tf.float32)
    ends = (progress <= 0) | (progress >= 1)
    holds = tf.cond(ends, lambda: ~tf.reduce_any(wrong()), lambda: tf.constant(True))
    return graph_errors.require(holds, words)
