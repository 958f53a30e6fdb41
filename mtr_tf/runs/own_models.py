# SPDX-License-Identifier: Apache-2.0
"""Models to train that a user's function builds: `--model=module:function`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtr_tf import files
from mtr_tf.data.custom import reading
from mtr_tf.errors import InputError
from mtr_tf.models import adapters
from mtr_tf.models import plain
from mtr_tf.models import probabilities
from mtr_tf.tasks import KINDS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import own_code

_KIND = "a functional Keras model"


def build(name: str, image_shape: Sequence[int | None], tasks: TaskSet) -> keras.Model:
    """Builds a model by a user's function `(image_shape, tasks) -> keras.Model`.

    Args:
      name: "package.module:function".
      image_shape: (height, width, channels) of the images, which are in [0, 1]; height
        and width are None if they differ between training and evaluation.
      tasks: The tasks, as declared by the data set.

    Returns:
      A functional model from images to {task: output}, in the order of the tasks.

    Raises:
      InputError: The function does not exist or fails, or what it returns cannot be
        trained or loaded again.
    """
    function = reading.own_function(name, "--model")
    call = functools.partial(function, tuple(image_shape), tasks)
    model = reading.called(name, call, _KIND)
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise InputError(
            f"--model={name} must return {_KIND}, keras.Model(images, {{task: output}})"
            f"; it returned one of type {type(model).__name__}."
        )
    _check_input(name, model, image_shape)
    outputs = _outputs(name, model, tasks)
    for task in tasks.values():
        _check_output(name, task, outputs[task.name], image_shape)
    if not isinstance(model.output, dict) or list(model.output) != list(outputs):
        if not adapters.is_functional(model):
            raise InputError(
                f"The model of --model={name} has a call of its own, so its outputs "
                f"must be a dict of just {', '.join(tasks)}, in this order; return "
                "these, or leave out the call."
            )
        model = keras.Model(model.inputs[0], outputs, name=model.name)
    _check_saving(name, model)
    return model


def _check_input(
    name: str, model: keras.Model, image_shape: Sequence[int | None]
) -> None:
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    fits = len(shapes) == 1 and tf.TensorShape(shapes[0][1:]).is_compatible_with(
        image_shape
    )
    if not fits or "float" not in str(model.inputs[0].dtype):
        kinds = [f"{s} of {t.dtype}" for s, t in zip(shapes, model.inputs, strict=True)]
        raise InputError(
            f"The model of --model={name} must have one input, float images of shape "
            f"{(None, *image_shape)}, but it has {', '.join(kinds)}; make it with "
            "keras.Input(image_shape)."
        )


def _outputs(
    name: str, model: keras.Model, tasks: TaskSet
) -> dict[str, keras.KerasTensor]:
    """The outputs of a model, by task."""
    outputs = model.output
    if not isinstance(outputs, dict) and len(tasks) == len(model.outputs) == 1:
        outputs = {next(iter(tasks)): model.outputs[0]}
    if not isinstance(outputs, dict) or not set(tasks) <= set(outputs):
        description = "a list of outputs"
        if isinstance(outputs, dict):
            description = f"outputs for {', '.join(map(str, outputs))}"
        raise InputError(
            f"The model of --model={name} must have a dict of outputs, one for each "
            f"of the tasks {', '.join(tasks)}, but it has {description}."
        )
    return {task: outputs[task] for task in tasks}


def _check_output(
    name: str, task: Task, output: Any, image_shape: Sequence[int | None]
) -> None:
    if not isinstance(output, keras.KerasTensor):
        raise InputError(
            f"The output for {task.name} of --model={name} must be one tensor, but it "
            f"is a {type(output).__name__} of tensors; return one of them, or join "
            "them."
        )
    channels = task.output_channels(None)
    places = tuple(image_shape[:2]) if task.is_map else (None,) * task.axes
    shape = tf.TensorShape(output.shape[1:])
    if not shape.is_compatible_with((*places, channels)):
        raise InputError(
            f"The output for {task.name} of --model={name} must have shape "
            f"{(None, *places, channels)}, with {channels} channels for each place, "
            f"but it has {output.shape}."
        )


def digest(model: keras.Model) -> str:
    """A hash of a model's architecture, and of the code of the user's own layers.

    It is the same in all processes with the same versions: names of layers, which Keras
    numbers, and seeds, which may be random, do not count.
    """
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(_names(config)))}
    kinds = dict.fromkeys(type(layer) for layer in model._flatten_layers())
    return files.digest([_rename_layers(config, numbers), own_code.of(*kinds)])


def _names(config: Any) -> Iterator[str]:
    """The names of layers and operations in a serialised model."""
    for part in plain.parts(config):
        part_config = part.get("config")
        name = part_config.get("name") if isinstance(part_config, dict) else None
        if isinstance(name, str) and "DTypePolicy" not in str(part.get("class_name")):
            yield name


def _rename_layers(config: Any, names: Mapping[str, str]) -> Any:
    """The config with other names, and without seeds."""
    if isinstance(config, dict):
        return {k: _rename_layers(v, names) for k, v in config.items() if k != "seed"}
    if isinstance(config, list | tuple):
        return [_rename_layers(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config


def check_logits(name: str, model: keras.Model, tasks: TaskSet) -> None:
    """Raises `InputError` if an output of classes or labels gives probabilities.

    Older runs may have been trained with one.
    """
    for task in tasks.values():
        activation = probabilities.activation_of(model.output[task.name])
        if activation and KINDS[task.kind].probabilities:
            raise InputError(
                f"The output for {task.name} of --model={name} must be logits, as "
                f"losses and attacks take them, but it has a {activation}; leave out "
                "that activation."
            )


def _check_saving(name: str, model: keras.Model) -> None:
    """Raises `InputError` for a model that cannot be loaded after saving."""
    try:
        config = keras.saving.serialize_keras_object(model)
        keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"The model of --model={name} cannot be loaded again after saving "
            f"({type(error).__name__}: {text}); use no Lambda layers, and decorate "
            "layers of your own with @keras.saving.register_keras_serializable()."
        ) from error
