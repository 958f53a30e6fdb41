# SPDX-License-Identifier: Apache-2.0
"""What an attack on a multi-task model raises, as one number per image.

Every objective here is a plain function of the attacked tasks' losses, so one backward
pass serves any number of tasks, and tasks that are not attacked cost none.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.errors import InputError

Losses = Mapping[str, tf.Tensor]


def _sum(losses: Losses) -> tf.Tensor:
    return tf.add_n(list(losses.values()))


def _mean(losses: Losses) -> tf.Tensor:
    return _sum(losses) / len(losses)


# How the attacked tasks' losses {task: [batch]} become one number per image, [batch].
BALANCES: dict[str, Callable[[Losses], tf.Tensor]] = {
    "sum": _sum,  # The paper's joint attack.
    "mean": _mean,  # The quantity of its theorem; equal steps, other gradient norms.
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of an objective but its batch: a pure function of (batch, x, progress).

    Attributes:
      model: Images [batch, H, W, 3] -> {task: output}.
      tasks: The attacked tasks' names.
      balance: A key of BALANCES.
    """

    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    tasks: tuple[str, ...]
    balance: str

    def __call__(
        self,
        batch: Mapping[str, Mapping[str, tf.Tensor]],
        x: tf.Tensor,
        progress: tf.Tensor | float,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (ascend, score), float32 [batch]; here the same, at any progress."""
        del progress
        losses = tasks_lib.task_losses(
            self.tasks, self._outputs(x), batch["targets"], batch["masks"]
        )
        raised = BALANCES[self.balance](losses)
        return raised, raised

    def _outputs(self, x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        # An attacked model's batch norm must neither use nor move batch statistics.
        is_keras = isinstance(self.model, keras.Layer)
        outputs = self.model(x, training=False) if is_keras else self.model(x)
        if not isinstance(outputs, Mapping):
            raise InputError(
                "The model must return a dict {task: output}, got "
                f"{type(outputs).__name__}; wrap it in a function that names its tasks."
            )
        for name in self.tasks:
            if name not in outputs:
                raise InputError(
                    f"The model has no task {name!r} to attack, only "
                    f"{', '.join(map(repr, outputs))}."
                )
        return outputs


@dataclasses.dataclass(frozen=True, eq=False)
class TaskObjective:
    """A recipe with its batch: `(x, progress)` -> (ascend, score), float32 [batch].

    Attributes:
      recipe: What is computed.
      batch: {"targets": {task: tensor}, "masks": {task: tensor}}.
    """

    recipe: Recipe
    batch: Mapping[str, Mapping[str, tf.Tensor]]

    @property
    def reusable(self) -> bool:
        """Whether the recipe's graph serves later batches: all its state is variables.

        True of functional and sequential Keras models; any other callable, a subclassed
        model too, may look at Python values.
        """
        return type(self.recipe.model).__name__ in ("Functional", "Sequential")

    def __call__(
        self, x: tf.Tensor, progress: tf.Tensor | float = 0.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (ascend, score) of the images x."""
        return self.recipe(self.batch, x, progress)


def objective(
    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    targets: Mapping[str, Any],
    masks: Mapping[str, Any],
    tasks: Iterable[str] | str | None = None,
    balance: str = "sum",
    pixels: Any | None = None,
) -> TaskObjective:
    """Returns the objective that raises the attacked tasks' losses on one batch.

    Args:
      model: Images [batch, H, W, 3] in [0, 1] -> {task: output}. A Keras model is
        called with `training=False`.
      targets: {task: [batch, H, W] or [batch, H, W, channels]}.
      masks: {task: [batch, H, W]}, zero where there is no target.
      tasks: Which of them are attacked, by names, aliases or letters; None is all.
      balance: "sum" (the paper) or "mean" of the attacked tasks' losses.
      pixels: 0/1 mask, [batch, H, W] or [H, W], of the output pixels that are attacked;
        None is all. Losses are means over those of them that have targets.

    Raises:
      InputError: A task without target or mask, an unknown task or balance, masks that
        do not fit; or, when called, a model without an attacked task.
    """
    names = tasks_lib.resolve(tuple(targets) if tasks is None else tasks)
    for kind, given in (("target", targets), ("mask", masks)):
        for name in names:
            if name not in given:
                raise InputError(
                    f"Every attacked task needs a {kind}, got none for {name!r}, only "
                    f"for {', '.join(map(repr, given)) or 'no task at all'}."
                )
    if balance not in BALANCES:
        near = difflib.get_close_matches(str(balance), BALANCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"balance is one of {', '.join(BALANCES)}, got {balance!r}{hint}"
        )
    batch = {
        "targets": {name: tf.convert_to_tensor(targets[name]) for name in names},
        "masks": {name: _restricted(masks[name], pixels) for name in names},
    }
    return TaskObjective(Recipe(model, names, balance), batch)


def _restricted(mask: Any, pixels: Any | None) -> tf.Tensor:
    mask = tf.cast(mask, tf.float32)
    if pixels is None:
        return mask
    pixels = tf.cast(pixels, tf.float32)
    fits = mask.shape.is_compatible_with(pixels.shape)
    if not fits and not mask.shape[1:].is_compatible_with(pixels.shape):
        raise InputError(
            f"pixels has a mask's shape {mask.shape} or one image's {mask.shape[1:]}, "
            f"got {pixels.shape}."
        )
    return mask * pixels
