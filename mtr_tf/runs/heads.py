# SPDX-License-Identifier: Apache-2.0
"""Which output of a model is which task: `--heads=OUTPUT:TASK,...`, or equal names.

A model may return a dict of outputs (nested or not), a list, a tuple or one tensor. An
output is identified by its path (`decoder/mask`, `0`), by the last part of the path, by
the layer that it comes from, or by its number in the model's order. Outputs without a
task are left alone.
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

_PICTURE = 4  # Axes of a batch of images.


@dataclasses.dataclass(frozen=True)
class Output:
    """One of a model's outputs.

    Attributes:
      number: In the order of the model's own structure.
      path: The keys to it, joined by `/`; "" of a model with one output.
      layer: The name of the layer that it comes from.
      tensor: Itself.
    """

    number: int
    path: str
    layer: str
    tensor: keras.KerasTensor

    @property
    def name(self) -> str:
        """What it is called where a task is named after it."""
        last = self.path.rpartition("/")[2]
        return self.layer if last.isdecimal() or not last else last

    @property
    def names(self) -> tuple[str, ...]:
        """All that it may be called by, the most exact first."""
        own = (self.path, str(self.number), self.name, self.layer)
        return tuple(dict.fromkeys(name for name in own if name))

    def __str__(self) -> str:
        shape = ", ".join(str(side) for side in self.tensor.shape[1:])
        return f"{self.path or self.number} ({self.layer}: {shape})"


@dataclasses.dataclass(frozen=True)
class Heads:
    """The tasks that a model's outputs are of.

    Attributes:
      tasks: Those of the heads, in the order of the outputs, or as asked for.
      outputs: By task, the output.
    """

    tasks: TaskSet
    outputs: Mapping[str, Output]

    def model(self, model: keras.Model) -> keras.Model:
        """The model of images -> {task: output}; itself if it is that already."""
        given, image = adapters.structure_of(model), model.inputs[0]
        own = {task: output.tensor for task, output in self.outputs.items()}
        same = isinstance(given, dict) and list(given) == list(own)
        if same and model.input is image and all(given[t] is own[t] for t in own):
            return model
        return keras.Model(image, own, name=model.name)

    @property
    def spec(self) -> str:
        """What to tell models apart by whose outputs are taken for other tasks."""
        return ",".join(
            f"{output.number}:{task}:{self.tasks[task].kind}"
            for task, output in self.outputs.items()
        )


def outputs_of(model: keras.Model) -> list[Output]:
    """All outputs of a functional model, in the order of its own structure."""
    structure = adapters.structure_of(model)
    return [
        Output(number, path, _layer_name(tensor), tensor)
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


def _layer_name(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return history[0].name if history else ""


def image_shape(model: keras.Model) -> tuple[int | None, ...]:
    """The shape of a batch of a model's images.

    Of several inputs, the one called image, or else the first with height and width.
    """
    structure = getattr(model, "input", None)
    named = structure if isinstance(structure, Mapping) else {}
    image = [named["image"]] if "image" in named else []
    image += [tensor for tensor in model.inputs if tensor.name == "image"]
    image += [tensor for tensor in model.inputs if len(tensor.shape) == _PICTURE]
    return tuple((image or model.inputs)[0].shape)


def axes_of(tensor: Any, image: Sequence[int | None]) -> tuple[int, int | None]:
    """How many axes the places of an output have, and how many channels it has.

    Args:
      tensor: The output.
      image: The shape of a batch of the model's images.

    Returns:
      Both; one channel where the output has no axis of channels, because its axes are
      those of the image, or of the batch alone; None where their number is not known.
    """
    shape = tuple(tensor.shape[1:])
    if not shape or shape == tuple(image[1:3]):
        return len(shape), 1
    return len(shape) - 1, shape[-1]


def classes_of(tensor: Any, image: Sequence[int | None]) -> int | None:
    """How many classes an output has logits for; None where that is not known.

    One logit is that of the second of two classes. Arguments are those of `axes_of`.
    """
    _, channels = axes_of(tensor, image)
    return channels and max(channels, 2)


def find(
    where: str,
    model: keras.Model,
    asked: Sequence[tuple[str, str]],
    known: TaskSet,
    single_task: Sequence[str] = (),
    flag: str = "--heads",
) -> Heads:
    """Finds the tasks of a model's outputs.

    Args:
      where: What messages call the model.
      model: Functional.
      asked: (output, task) as the flag has it; empty: outputs are taken by their names.
      known: The tasks that there may be.
      single_task: Of a model with one output, its task where no name tells it.
      flag: What messages call the flag.

    Raises:
      InputError: There is no such output or task, two of one name, or no output is a
        task's.
    """
    outputs = outputs_of(model)
    if asked:
        image = image_shape(model)
        pairs = [_asked(where, outputs, image, *pair, known, flag) for pair in asked]
    else:
        pairs = [(o, t) for o in outputs if (t := _by_name(o, known)) is not None]
        if not pairs and len(outputs) == 1 and len(single_task) == 1:
            pairs = [(outputs[0], known.find(single_task[0]))]
    if not pairs:
        raise InputError(
            f"the outputs of {where} must have names of tasks ({', '.join(known)}), "
            f"but they are {_listed(outputs)}. Give {flag}=OUTPUT:TASK,... to say "
            f"which is which, such as {flag}={outputs[0].path or 0}:TASK (for a "
            "single output, --tasks=NAME works too)."
        )
    names = [task.name for _, task in pairs]
    numbers = [output.number for output, _ in pairs]
    if len(set(names)) < len(pairs) or len(set(numbers)) < len(pairs):
        given = ", ".join(f"{o.path or o.number}:{task.name}" for o, task in pairs)
        raise InputError(
            f"each output of {where} must be a different task, and each task a "
            f"different output; got {given}. Say which is which with "
            f"{flag}=OUTPUT:TASK,..."
        )
    alone = [output for output in outputs if output.number not in numbers]
    if alone:
        logging.info("these outputs of %s are left alone: %s", where, _listed(alone))
    return Heads(
        TaskSet(task for _, task in pairs),
        {task.name: output for output, task in pairs},
    )


def _listed(outputs: Sequence[Output]) -> str:
    return ", ".join(map(str, outputs))


def _by_name(output: Output, known: TaskSet) -> Task | None:
    """The task of an output's name; None where it has none."""
    for name in (output.path, output.name, output.layer):
        with contextlib.suppress(InputError):
            return known.find(name)
    return None


def _asked(
    where: str,
    outputs: Sequence[Output],
    image: Sequence[int | None],
    name: str,
    task: str,
    known: TaskSet,
    flag: str,
) -> tuple[Output, Task]:
    """The output and the task of one pair of the flag."""
    for names in itertools.zip_longest(*(output.names for output in outputs)):
        if names.count(name) > 1:
            raise InputError(
                f"{flag} names {name!r}, but {names.count(name)} outputs of {where} "
                f"have that name; give the number or path of one: {_listed(outputs)}."
            )
        if name in names:
            output = outputs[names.index(name)]
            return output, _task(output, image, task, known, flag)
    every = [n for output in outputs for n in output.names]
    raise InputError(
        f"{flag} names the output {name!r}, but the outputs of {where} are "
        f"{_listed(outputs)}; name one of these.{did_you_mean(name, every)}"
    )


def _task(
    output: Output,
    image: Sequence[int | None],
    name: str,
    known: TaskSet,
    flag: str,
) -> Task:
    """The task of a name, or one of a kind that is named after the output."""
    if name in known or name not in tasks_lib.KINDS:
        try:
            return known.find(name)
        except InputError as error:
            if name in tasks_lib.TASKS:
                raise InputError(
                    f"{flag} names the task {name}, but the data have no targets for "
                    f"it, only for {', '.join(known) or 'no task'}; add them to the "
                    "examples, or name another task."
                ) from error
            raise InputError(
                f"{flag} must give each output the name of a task, or one of the "
                f"kinds {', '.join(tasks_lib.KINDS)}, but {name!r} is neither: "
                f"{error}"
            ) from error
    own = re.sub(r"[^A-Za-z0-9_.-]", "_", output.name)
    if not re.match(r"[A-Za-z].", own) or own.lower() in names_lib.RESERVED:
        own = f"output_{own or output.number}"
    if own in known:
        task = known[own]
        if task.kind != name:
            raise InputError(
                f"{flag} says that {own} is of kind {name}, but the data have a task "
                f"{own} of kind {task.kind}; give {flag}={output.path or 0}:{own}."
            )
        return task
    places, channels = axes_of(output.tensor, image)
    if tasks_lib.KINDS[name].discrete:
        channels = classes_of(output.tensor, image)
    return Task(own, kind=name, channels=channels or 1, places=places)
