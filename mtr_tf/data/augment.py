# SPDX-License-Identifier: Apache-2.0
"""Random flips and crops that move an image, its targets and its masks together.

The random numbers for an image are a pure function of (seed, step, position of the
image in the global batch). They do not depend on the number of replicas, on threads, or
on whether a run was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from mtr_tf import tasks as task_table
from mtr_tf.errors import InputError
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks.task import MAP

# Task records, or names of the eleven built-in tasks.
Tasks = Iterable[str | Task] | Mapping[str, Task]


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied.

    Attributes:
        flip: mirror left and right with probability one half. A task whose values
            change sign in a mirror declares this (`Task.mirror`, a factor per channel).
        crop: (height, width) of the window to cut out, where every position is equally
            likely; None keeps the whole picture. Targets that are not maps stay
            unchanged.
    """

    flip: bool = True
    crop: tuple[int, int] | None = None

    def check(self, height: int, width: int, tasks: Tasks = ()) -> None:
        """Raises InputError if pictures of [height, width] are too small for `crop`.

        Also raises it if mirroring changes the targets of a task in an unknown way.
        """
        for task in task_table.task_set(tasks).values() if self.flip else ():
            reason = ""
            if task.axes not in (0, MAP):
                reason = "it is neither a map nor one value per image"
            elif task.kind == "directions":
                reason = "directions point elsewhere then"
            if reason and task.discrete:
                raise InputError(
                    f"Images must not be mirrored for the task {task.name}, whose "
                    f"classes in a mirror nobody knows, because {reason}; train with "
                    "--noflip."
                )
            if reason and task.mirror is None:
                raise InputError(
                    f"The task {task.name} must say how its targets change when "
                    f"images are mirrored, because {reason}; give it mirror=(...), a "
                    "factor for each channel, or train with --noflip."
                )
        if self.crop is None:
            return
        if not (0 < self.crop[0] <= height and 0 < self.crop[1] <= width):
            raise InputError(
                f"The crop must be at least 1x1 and fit into the pictures, got "
                f"{self.crop[0]}x{self.crop[1]} for pictures of {height}x{width} "
                "(height x width)."
            )

    def __call__(
        self, batch: dict[str, Any], seed: int, tasks: Tasks | None = None
    ) -> dict[str, Any]:
        """Returns `batch` with its images, targets and masks flipped and cropped.

        Args:
            batch: see `mtr_tf.data.batching`; "image", "targets", "masks", "step" and
                "position" are used, further entries are passed through.
            seed: the seed of the run.
            tasks: the tasks of the targets; None if all are built-in tasks.
        """
        records = task_table.task_set(
            tuple(batch["targets"]) if tasks is None else tasks
        )
        height, width = batch["image"].shape[1:3]
        self.check(height, width, records)
        size = self.crop or (height, width)

        def vary(arguments: tuple[tf.Tensor, dict[str, Any]]) -> dict[str, Any]:
            position, example = arguments
            draws = uniform(seed, batch["step"], position, 3)
            top = _offset(draws[0], height, size[0])
            left = _offset(draws[1], width, size[1])
            window = _apply_to_maps(
                lambda maps: maps[top : top + size[0], left : left + size[1]],
                example,
                records,
            )
            if not self.flip:
                return window
            return tf.cond(
                draws[2] < 0.5, lambda: mirrored(window, records), lambda: window
            )

        examples = {name: batch[name] for name in ("image", "targets", "masks")}
        new_examples = tf.map_fn(
            vary,
            (batch["position"], examples),
            fn_output_signature=_apply_to_maps(
                lambda spec: tf.TensorSpec((*size, *spec.shape[2:]), spec.dtype),
                tf.nest.map_structure(
                    lambda values: tf.TensorSpec(values.shape[1:], values.dtype),
                    examples,
                ),
                records,
            ),
        )
        return {**batch, **new_examples}


def mirrored(example: dict[str, Any], tasks: TaskSet) -> dict[str, Any]:
    """Returns one example {"image", "targets", "masks"} with left and right swapped."""
    result = _apply_to_maps(lambda maps: tf.reverse(maps, [1]), example, tasks)
    for name, target in result["targets"].items():
        factors = tasks[name].mirror
        if factors is not None:
            result["targets"][name] = target * tf.constant(factors, target.dtype)
    return result


def _apply_to_maps(
    function: Callable[[Any], Any], example: dict[str, Any], tasks: TaskSet
) -> dict[str, Any]:
    """Returns an example with `function` applied to its image and to all maps."""
    result = {"image": function(example["image"])}
    for part in ("targets", "masks"):
        result[part] = {
            name: function(values) if tasks[name].is_map else values
            for name, values in example[part].items()
        }
    return result


def uniform(seed: int, step: tf.Tensor, position: tf.Tensor, count: int) -> tf.Tensor:
    """Draws `count` float32 numbers in [0, 1), a function of the other arguments.

    The generator is named (Philox), so that CPU and GPU draw the same numbers.
    """
    fold_in = tf.random.experimental.stateless_fold_in
    key = fold_in(fold_in(tf.constant([seed, 0], tf.int64), step), position)
    return tf.random.stateless_uniform([count], key, alg="philox")


def _offset(draw: tf.Tensor, length: int, size: int) -> tf.Tensor:
    """The start of a window of `size` in [0, length); all starts are equally likely."""
    choices = length - size + 1
    # The product may round up to `choices`, which is one too many.
    return tf.minimum(tf.cast(draw * choices, tf.int32), choices - 1)
