# SPDX-License-Identifier: Apache-2.0
"""Which output of a model is which task: by `--heads=OUTPUT:TASK,...`, or by name.

A model may return a dict of outputs (nested or not), a list, a tuple or one tensor. An
output is identified by its path (`decoder/mask`, `0`), by the last part of the path, by
the layer that it comes from, or by its number in the model's order. Outputs without a
task are ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
from absl import logging

from mtr_tf import tasks as tasks_lib
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.models import adapters
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import names as names_lib

_IMAGE_AXES = 4  # Axes of a batch of images.


@dataclasses.dataclass(frozen=True)
class Output:
    """One of a model's outputs.

    Attributes:
      number: Its place in the order of the model's own structure.
      path: The keys that lead to it, joined by `/`; "" if the model returns one tensor.
      layer: The name of the layer that it comes from.
      tensor: Its symbolic tensor.
    """

    number: int
    path: str
    layer: str
    tensor: keras.KerasTensor

    @property
    def name(self) -> str:
        """The name for a task that is named after it."""
        last_key = self.path.rpartition("/")[2]
        return self.layer if last_key.isdecimal() or not last_key else last_key

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which it may be given, the most exact first."""
        names = (self.path, str(self.number), self.name, self.layer)
        return tuple(dict.fromkeys(name for name in names if name))

    def __str__(self) -> str:
        shape = ", ".join(str(side) for side in self.tensor.shape[1:])
        return f"{self.path or self.number} ({self.layer}: {shape})"


@dataclasses.dataclass(frozen=True)
class Heads:
    """The tasks of a model's outputs.

    Attributes:
      tasks: The tasks, in the order of the outputs, or as they were asked for.
      outputs: The output of each task, by name.
    """

    tasks: TaskSet
    outputs: Mapping[str, Output]

    def model(self, model: keras.Model) -> keras.Model:
        """A model of images -> {task: output}; `model` itself if it is one already."""
        structure, image = adapters.structure_of(model), model.inputs[0]
        outputs = {task: output.tensor for task, output in self.outputs.items()}
        same_tasks = isinstance(structure, dict) and list(structure) == list(outputs)
        if (
            same_tasks
            and model.input is image
            and all(structure[t] is outputs[t] for t in outputs)
        ):
            return model
        return keras.Model(image, outputs, name=model.name)

    @property
    def spec(self) -> str:
        """A text that differs where outputs are taken for other tasks."""
        return ",".join(
            f"{output.number}:{task}:{self.tasks[task].kind}"
            for task, output in self.outputs.items()
        )


def outputs_of(model: keras.Model) -> list[Output]:
    """All outputs of a functional model, in the order of its own structure."""
    structure = adapters.structure_of(model)
    return [
        Output(number, path, tensor._keras_history[0].name, tensor)
        for number, (path, tensor) in enumerate(_flat(structure, ()))
    ]


def _flat(structure: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(structure, Mapping):
        parts = list(structure.items())
    elif isinstance(structure, list | tuple):
        parts = list(enumerate(structure))
    else:
        if structure is not None:
            yield "/".join(path), structure
        return
    for key, part in parts:
        yield from _flat(part, (*path, str(key)))


def image_shape(model: keras.Model) -> tuple[int | None, ...]:
    """The shape of a batch of a model's images.

    With several inputs: of the one called image, or else the first with height and
    width.
    """
    structure = getattr(model, "input", None)
    inputs = structure if isinstance(structure, Mapping) else {}
    candidates = [inputs["image"]] if "image" in inputs else []
    candidates += [tensor for tensor in model.inputs if tensor.name == "image"]
    candidates += [
        tensor for tensor in model.inputs if len(tensor.shape) == _IMAGE_AXES
    ]
    return tuple((candidates or model.inputs)[0].shape)


def axes_of(tensor: Any, image: Sequence[int | None]) -> tuple[int, int | None]:
    """The number of axes of an output's places, and its number of channels.

    Args:
      tensor: The output.
      image: The shape of a batch of the model's images.

    Returns:
      Both. There is one channel if the output has no axis of channels, that is, if its
      axes after the batch are none or the image's height and width; None if the number
      is not known.
    """
    shape = tuple(tensor.shape[1:])
    if not shape or shape == tuple(image[1:3]):
        return len(shape), 1
    return len(shape) - 1, shape[-1]


def classes_of(tensor: Any, image: Sequence[int | None]) -> int | None:
    """The number of classes that an output has logits for; None if it is not known.

    A single logit is that of the second of two classes. For the arguments see
    `axes_of`.
    """
    _, channels = axes_of(tensor, image)
    return channels and max(channels, 2)


def find(
    where: str,
    model: keras.Model,
    heads: Sequence[tuple[str, str]],
    tasks: TaskSet,
    single_task: Sequence[str] = (),
    flag: str = "--heads",
) -> Heads:
    """Finds the tasks of a model's outputs.

    Args:
      where: What messages call the model.
      model: A functional model.
      heads: Pairs (output, task) from the flag; empty: go by the names of the outputs.
      tasks: The tasks that are possible.
      single_task: The task of a model with one output whose name is no task.
      flag: What messages call the flag.

    Raises:
      InputError: An output or task does not exist or is named twice, or no output
        belongs to a task.
    """
    outputs = outputs_of(model)
    if heads:
        image, pairs = image_shape(model), []
        for name, task in heads:
            output = _find_output(where, outputs, name, flag)
            pairs.append((output, _task(output, image, task, tasks, flag)))
    else:
        pairs = [(o, t) for o in outputs if (t := _task_by_name(o, tasks)) is not None]
        if not pairs and len(outputs) == 1 and len(single_task) == 1:
            pairs = [(outputs[0], tasks.find(single_task[0]))]
    if not pairs:
        raise InputError(
            f"the outputs of {where} must have names of tasks ({', '.join(tasks)}), "
            f"but they are {_format_outputs(outputs)}. Give {flag}=OUTPUT:TASK,... to "
            f"say which is which, such as {flag}={outputs[0].path or 0}:TASK (for a "
            "single output, --tasks=NAME works too)."
        )
    names = [task.name for _, task in pairs]
    numbers = [output.number for output, _ in pairs]
    if len(set(names)) < len(pairs) or len(set(numbers)) < len(pairs):
        pairs_text = ", ".join(f"{o.path or o.number}:{task.name}" for o, task in pairs)
        raise InputError(
            f"each output of {where} must be a different task, and each task a "
            f"different output; got {pairs_text}. Say which is which with "
            f"{flag}=OUTPUT:TASK,..."
        )
    unused_outputs = [output for output in outputs if output.number not in numbers]
    if unused_outputs:
        logging.info(
            "these outputs of %s are left alone: %s",
            where,
            _format_outputs(unused_outputs),
        )
    return Heads(
        TaskSet(task for _, task in pairs),
        {task.name: output for output, task in pairs},
    )


def _format_outputs(outputs: Sequence[Output]) -> str:
    return ", ".join(map(str, outputs))


def _task_by_name(output: Output, tasks: TaskSet) -> Task | None:
    """The task that an output is named after; None if there is none."""
    for name in (output.path, output.name, output.layer):
        with contextlib.suppress(InputError):
            return tasks.find(name)
    return None


def _find_output(where: str, outputs: Sequence[Output], name: str, flag: str) -> Output:
    """Finds the output that one pair of the flag names."""
    for names in itertools.zip_longest(*(output.names for output in outputs)):
        if names.count(name) > 1:
            raise InputError(
                f"{flag} names {name!r}, but {names.count(name)} outputs of {where} "
                "have that name; give the number or path of one: "
                f"{_format_outputs(outputs)}."
            )
        if name in names:
            return outputs[names.index(name)]
    all_names = [n for output in outputs for n in output.names]
    raise InputError(
        f"{flag} names the output {name!r}, but the outputs of {where} are "
        f"{_format_outputs(outputs)}; name one of these.{did_you_mean(name, all_names)}"
    )


def _task(
    output: Output,
    image: Sequence[int | None],
    name: str,
    tasks: TaskSet,
    flag: str,
) -> Task:
    """The task of a name; for the name of a kind, one named after the output."""
    if name in tasks or name not in tasks_lib.KINDS:
        try:
            return tasks.find(name)
        except InputError as error:
            if name in tasks_lib.TASKS:
                raise InputError(
                    f"{flag} names the task {name}, but the data have no targets for "
                    f"it, only for {', '.join(tasks) or 'no task'}; add them to the "
                    "examples, or name another task."
                ) from error
            raise InputError(
                f"{flag} must give each output the name of a task, or one of the "
                f"kinds {', '.join(tasks_lib.KINDS)}, but {name!r} is neither: "
                f"{error}"
            ) from error
    task_name = re.sub(r"[^A-Za-z0-9_.-]", "_", output.name)
    if not re.match(r"[A-Za-z].", task_name) or task_name.lower() in names_lib.RESERVED:
        task_name = f"output_{task_name or output.number}"
    if task_name in tasks:
        task = tasks[task_name]
        if task.kind != name:
            raise InputError(
                f"{flag} says that {task_name} is of kind {name}, but the data have a "
                f"task {task_name} of kind {task.kind}; give "
                f"{flag}={output.path or 0}:{task_name}."
            )
        return task
    places, channels = axes_of(output.tensor, image)
    if tasks_lib.KINDS[name].discrete:
        channels = classes_of(output.tensor, image)
    return Task(task_name, kind=name, channels=channels or 1, places=places)
