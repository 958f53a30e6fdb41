# SPDX-License-Identifier: Apache-2.0
"""Checks whether a model and a data set fit together, and adapts small differences.

This happens before anything is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import tensorflow as tf

from mtr_tf import data
from mtr_tf import tasks as tasks_lib
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.models import adapters
from mtr_tf.runs import heads as heads_lib
from mtr_tf.runs.loading import Run
from mtr_tf.runs.loading import input_size
from mtr_tf.tasks import Task

Shape = tuple[int | None, ...]
"""That of one example's output."""

# Sizes that are tried are multiples of these.
_STRIDES = (2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
_SUGGESTIONS = 2  # Sizes that messages suggest.


def fitted(
    run: Run,
    info: DatasetInfo,
    tasks: Sequence[str],
    name: str = "the model",
    flag: str = "--heads",
) -> Run:
    """The run with outputs of the tasks' own number of axes and of channels.

    An output without an axis for its single channel gets one. For two classes the logit
    of the second is enough. Maps may differ from the images in size, see `first_look`.

    Args:
      run: The model.
      info: About the data set.
      tasks: The scored tasks.
      name: The name of the model in messages.
      flag: The flag of its heads in messages.

    Raises:
      InputError: The model cannot take the images, or an output does not fit its task.
    """
    model = run.model
    _check_images(model, info, name)
    shapes = output_shapes(model, info.image_shape)
    if shapes is None:
        height, width = info.image_shape[:2]
        raise InputError(
            f"{name} cannot take the images of {info.name}, {height}x{width}, because "
            "its layers do not fit together at that size; "
            f"{_size_advice(info, _other_sizes(model, info))}."
        )
    outputs, layer_names = dict(model.output), adapters.names_in(model)
    for task_name in tasks:
        task = task_of(run, info, task_name)
        _check_dtype(outputs[task_name], task, name)
        shape = _task_shape(shapes[task_name], task, info.num_classes)
        if shape is None:
            raise _misfit(shapes[task_name], task, info, name, flag)
        if task.is_map and not input_size(model):
            _check_size(model, info, task, shapes[task_name], name)
        if shape == shapes[task_name]:
            continue
        layer_name = adapters.free_name(f"{task_name}_with_channels", layer_names)
        settings = {"dtype": outputs[task_name].dtype, "name": layer_name}
        if len(shape) > len(shapes[task_name]):
            layer = adapters.ExpandDims(**settings)
        else:
            layer = keras.layers.Reshape(shape, **settings)
        outputs[task_name] = layer(outputs[task_name])
    if all(outputs[task_name] is model.output[task_name] for task_name in outputs):
        return run
    fitted_model = keras.Model(model.inputs[0], outputs, name=model.name)
    return dataclasses.replace(run, model=fitted_model)


def task_of(run: Run, info: DatasetInfo, name: str) -> Task:
    """The task of a name, as the data set has it, or as the heads declare it.

    If neither states the number of classes, the output gives it.
    """
    if name in info.tasks:
        return info.tasks[name]
    task = run.heads.tasks[name] if run.heads else tasks_lib.TASKS[name]
    if not task.discrete or task.channels is not None:
        return task
    image, output = run.model.inputs[0].shape, run.model.output[name]
    return task.bound(channels=info.num_classes or heads_lib.classes_of(output, image))


def _check_images(model: keras.Model, info: DatasetInfo, name: str) -> None:
    """Raises `InputError` unless the model takes images of that size and channels."""
    size = input_size(model)
    height, width, channels = info.image_shape
    if size and size != (height, width):
        raise InputError(
            f"{name} takes images of {size[0]}x{size[1]}, but those of {info.name} "
            f"are {height}x{width}; {_resize_advice(info, size)}."
        )
    model_channels = model.input_shape[-1]
    if model_channels not in (None, channels):
        raise InputError(
            f"{name} takes images with {model_channels} channels, but those of "
            f"{info.name} have {channels}; give data that fit, or put a layer in front "
            "of the model that converts them."
        )


def _resize_advice(info: DatasetInfo, size: Sequence[int]) -> str:
    """Advice on how to give images of a data set another size."""
    if _has_sizes(info):
        return f"give --image_size={size[0]}x{size[1]}"
    return "resize your examples: images, targets and masks"


def _has_sizes(info: DatasetInfo) -> bool:
    """Whether --image_size applies to a data set."""
    return info.name in data.DATASETS and not data.may_bring_tasks(info.name)


def _check_dtype(output: keras.KerasTensor, task: Task, name: str) -> None:
    if "float" not in str(output.dtype):
        raise InputError(
            f"{name}'s {task.name} must be floats such as logits, because only floats "
            f"have a gradient, but it is {output.dtype}; remove what rounds it, such "
            "as an argmax."
        )


def _task_shape(shape: Shape, task: Task, num_classes: int) -> Shape | None:
    """The shape for a task that an output of this shape can have; None if none fits.

    Both shapes lack the axis of the batch.
    """
    channels = task.output_channels(num_classes)
    channel_counts = {None, channels}
    if task.discrete and channels == 2:  # The logit of the second class is enough.
        channel_counts.add(1)
    if not channels:
        channel_counts |= set(shape[-1:])
    if len(shape) == task.axes + 1 and shape[-1] in channel_counts:
        return shape
    is_flat = task.is_map and len(shape) == 2 and shape[-1] in channel_counts - {None}
    if len(shape) == task.axes and 1 in channel_counts and not is_flat:
        return (*shape, 1)
    if task.axes == 0 and len(shape) == 3 and shape[:2] == (1, 1):
        return shape[2:] if shape[2] in channel_counts else None
    return None


def _misfit(
    shape: Shape, task: Task, info: DatasetInfo, name: str, flag: str
) -> InputError:
    """The error for an output whose shape does not fit its task."""
    channels = task.output_channels(info.num_classes)
    height, width = info.image_shape[:2]
    if task.is_map and len(shape) == 2 and shape[1] in (1, channels):
        size = f"{height}, {width}, {shape[1]}"
        return InputError(
            f"{name}'s {task.name} must be a map (height, width, channels), but it is "
            f"flat, {shape}; put keras.layers.Reshape(({size})) after it, as in "
            f"keras.Model(model.input, keras.layers.Reshape(({size}))(model.output)), "
            "with the output's real height and width, and save that."
        )
    if task.is_map and len(shape) == 3 and shape[0] == channels:
        return InputError(
            f"{name}'s {task.name} must have its channels last, but its shape is "
            f"{shape}; put keras.layers.Permute((2, 3, 1)) after it and save that."
        )
    expected = {
        2: f"{(height, width, channels)} (height, width, channels)",
        0: f"{(channels,)}, for the whole image",
    }.get(task.axes, f"{task.axes} axes and then {channels} channels")
    too_many = len(shape) == task.axes + 1 and (shape[-1] or 0) > channels
    advice = ""
    if too_many and task.discrete and info.name not in data.DATASETS:
        advice = (
            f"name all classes, or declare Task({task.name!r}, kind='classes', "
            f"channels={shape[-1]}), if these data do not show all of them; or "
        )
    return InputError(
        f"{name}'s {task.name} must have shape {expected} on {info.name}, but it has "
        f"{shape}; {advice}say with {flag} which output is which task, or give the "
        "data set that the model was trained on."
    )


def _check_size(
    model: keras.Model, info: DatasetInfo, task: Task, shape: Shape, name: str
) -> None:
    """Raises `InputError` if a map has its images' size at other sizes, but not here.

    This happens in nets that pad or crop sizes that their strides do not divide.
    """
    height, width = info.image_shape[:2]
    if tf.TensorShape(shape[:2]).is_compatible_with((height, width)):
        return
    sizes = _other_sizes(model, info, task.name)
    if sizes:
        raise InputError(
            f"{name}'s {task.name} must be {height}x{width}, like the images of "
            f"{info.name}, but it is {shape[0]}x{shape[1]}; "
            f"{_size_advice(info, sizes)}."
        )


def output_shapes(
    model: keras.Model, image_shape: Sequence[int]
) -> Mapping[str, Shape] | None:
    """Each output's shape for one image; None where the model cannot take it.

    TensorFlow infers them, as it compares shapes where Keras's layers may not. Sizes
    that are known only in a run are None.
    """
    call = tf.function(lambda x: model(x, training=False), autograph=False)
    spec = tf.TensorSpec((1, *image_shape), tf.float32)
    try:
        outputs = call.get_concrete_function(spec).structured_outputs
    except Exception:  # Layers raise errors of any class.
        return None
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}


def _other_sizes(
    model: keras.Model, info: DatasetInfo, task: str = ""
) -> list[tuple[int, ...]]:
    """The sizes nearest the images' that the model takes, and maps of `task` keep."""
    height, width, channels = info.image_shape
    distances = {
        size: abs(size[0] - height) + abs(size[1] - width)
        for stride in _STRIDES
        for size in itertools.product(*(_multiples(n, stride) for n in (height, width)))
    }
    sizes = []
    for size in sorted(distances, key=lambda size: (distances[size], size)):
        shapes = output_shapes(model, (*size, channels))
        if shapes and (not task or shapes[task][:2] == size):
            sizes.append(size)
        if len(sizes) == _SUGGESTIONS:
            break
    return sizes


def _size_advice(info: DatasetInfo, sizes: Sequence[Sequence[int]]) -> str:
    """Advice on how to give images of a data set one of the sizes a model takes."""
    texts = [f"{height}x{width}" for height, width in sizes]
    if _has_sizes(info):
        texts = [f"--image_size={size}" for size in texts]
        if not texts:
            return "give --image_size, a size that it takes"
        return f"the nearest sizes that work are {' and '.join(texts)}"
    suffix = f" to {' or '.join(texts)}" if texts else " to a size that it takes"
    return f"resize your examples{suffix}: images, targets and masks"


def _multiples(number: int, stride: int) -> list[int]:
    """The positive multiples of the stride next below and above."""
    lower = number // stride * stride
    return [n for n in (lower, lower + stride) if n > 0]
