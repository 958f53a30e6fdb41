# SPDX-License-Identifier: Apache-2.0
"""Whether a model and a data set go together, before anything is computed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.runs.loading import input_size

_STRIDES = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    12,
    16,
    32,
    64,
)  # Sizes that are tried are multiples of these.
_OFFERED = 2  # So many sizes that work are named.


def check_outputs(model: keras.Model, info: DatasetInfo, tasks: Sequence[str]) -> None:
    """Raises `InputError` unless the model gives the tasks' outputs on these images."""
    size = input_size(model)
    if size and size != tuple(info.image_shape[:2]):
        raise InputError(
            f"the model takes images of {size[0]}x{size[1]}, and those of {info.name} "
            f"are {info.image_shape[0]}x{info.image_shape[1]}; give "
            f"--image_size={size[0]}x{size[1]}."
        )
    shapes = output_shapes(model, info.image_shape)
    if shapes is None:
        height, width = info.image_shape[:2]
        raise InputError(
            f"the model cannot take images of {height}x{width}, those of {info.name}, "
            f"as its layers do not fit together there; {_other_sizes(model, info)}."
        )
    for task in tasks:
        channels = tasks_lib.TASKS[task].output_channels(info.num_classes)
        expected = (*info.image_shape[:2], channels)
        if not tf.TensorShape(shapes[task]).is_compatible_with(expected):
            at_fault = shapes[task][:-1] != expected[:-1]
            other = ""
            if at_fault and size is None:
                other = f" {_other_sizes(model, info, task)}, or"
            raise InputError(
                f"the model's {task} must have shape {expected} (height, width, "
                f"channels) on {info.name}, and it has {shapes[task]};{other} choose "
                "the data set that it was trained on, or change the model."
            )


def output_shapes(
    model: keras.Model, image_shape: Sequence[int]
) -> Mapping[str, tuple[int | None, ...]] | None:
    """Each output's shape for one image; None where the model cannot take it.

    Found by TensorFlow, which compares shapes where Keras's layers may not. What only
    a run can tell is None in a shape.
    """
    call = tf.function(lambda x: model(x, training=False), autograph=False)
    spec = tf.TensorSpec((1, *image_shape), tf.float32)
    try:
        outputs = call.get_concrete_function(spec).structured_outputs
    except Exception:  # Layers raise whatever they like.
        return None
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}


def _other_sizes(model: keras.Model, info: DatasetInfo, task: str = "") -> str:
    """Says which sizes near the images' the model takes (and gives `task` at)."""
    height, width, channels = info.image_shape
    near = {
        size: abs(size[0] - height) + abs(size[1] - width)
        for stride in _STRIDES
        for size in itertools.product(*(_multiples(n, stride) for n in (height, width)))
    }
    sizes = []
    for size in sorted(near, key=lambda size: (near[size], size)):
        shapes = output_shapes(model, (*size, channels))
        if shapes and (not task or shapes[task][:-1] == size):
            sizes.append(f"--image_size={size[0]}x{size[1]}")
        if len(sizes) == _OFFERED:
            break
    if not sizes:
        return "give --image_size, a size that it takes"
    return f"the nearest sizes that work are {' and '.join(sizes)}"


def _multiples(number: int, stride: int) -> list[int]:
    """The multiples of the stride next below and above."""
    below = number // stride * stride
    return [n for n in (below, below + stride) if n > 0]


def first_line(error: Exception) -> str:
    """The first line of what a layer said, for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    )
