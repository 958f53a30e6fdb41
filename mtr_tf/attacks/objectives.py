# SPDX-License-Identifier: Apache-2.0
"""What an attack on a multi-task model raises, as one number per image.

    model -> outputs -> each attacked task's loss (its own, or one of SURROGATES)
          -> one number to climb (one of BALANCES) and one to judge points by

Nearly all is a plain function of the attacked tasks' losses, so one backward pass
serves any number of tasks, and tasks that are not attacked cost none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf import metrics
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import arguments
from mtr_tf.attacks import balance as balance_lib
from mtr_tf.attacks import checks
from mtr_tf.attacks import pixels as pixels_lib
from mtr_tf.attacks.balance import BALANCES
from mtr_tf.attacks.balance import Losses
from mtr_tf.attacks.surrogates import SURROGATES
from mtr_tf.attacks.surrogates import Case
from mtr_tf.errors import InputError
from mtr_tf.models import inference

Batch = Mapping[str, Mapping[str, tf.Tensor]]

# What scores are made of: each task's own training loss, or its error.
JUDGES = ("loss", "error")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of an objective but its batch: a pure function of (batch, x, progress).

    Attributes:
      model: Images [batch, H, W, 3] -> {task: output}.
      tasks: The attacked tasks' names.
      balance: A key of BALANCES.
      weights: Of each attacked task's loss; empty where all are 1.
      losses: The surrogate that each attacked task raises, None for its own loss; empty
        where all raise their own.
      targeted: Whether the targets are what the attacker wants to see.
      judge: One of JUDGES.
      fold: Whether attacks fold the model's batch norms.
    """

    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    tasks: tuple[str, ...]
    balance: str
    weights: tuple[float, ...] = ()
    losses: tuple[str | None, ...] = ()
    targeted: bool = False
    judge: str = "loss"
    fold: bool = True

    def __post_init__(self):
        checks.check_name("balance", self.balance, BALANCES)
        checks.check_name("judge", self.judge, JUDGES)
        if self.weights and not BALANCES[self.balance].weighted:
            raise InputError(
                "Weights are for the balances "
                f"{', '.join(b for b in BALANCES if BALANCES[b].weighted)}, where they "
                f"mean something; got them with {self.balance!r}."
            )
        for name in filter(None, self.losses):
            if SURROGATES[name].signed and BALANCES[self.balance].relative:
                raise InputError(
                    f"The balance {self.balance!r} divides losses by losses, which "
                    f"must not be negative, but {name!r} may be; choose another."
                )
            if self.targeted and not SURROGATES[name].targetable:
                raise InputError(
                    f"The loss {name!r} has no targeted form; choose another."
                )

    def __call__(
        self, batch: Batch, x: tf.Tensor, progress: tf.Tensor | float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (ascend, score), float32 [batch]; see `objective`."""
        balance = BALANCES[self.balance]
        x = tf.convert_to_tensor(x)
        # Watches nothing, and so records nothing, unless the balance needs it.
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape:
            if balance.steepest:
                tape.watch(x)
            raised, judged = self._losses(self._outputs(x), batch, progress)
        ascend = balance(raised, batch.get("raised_at_start"), progress)
        if balance.steepest:
            ascend = balance_lib.sum_of_steepest(
                tape, x, list(raised.values()), balance.steepest
            )
        score = balance.score(judged, batch.get("judged_at_start"))
        return (-ascend, -score) if self.targeted else (ascend, score)

    def folded(self) -> Recipe:
        """Returns it with a model of now that does less work, if asked for."""
        if not self.fold or not inference.can_fold(self.model, self.tasks):
            return self
        return dataclasses.replace(self, model=inference.fold(self.model, self.tasks))

    def bind(self, batch: Batch) -> TaskObjective:
        """Returns the objective of this recipe on a batch."""
        return TaskObjective(self, batch)

    def started(self, batch: Batch, start: tf.Tensor) -> Batch:
        """Returns the batch with the losses at `start`, where the balance uses them."""
        if not BALANCES[self.balance].from_start:
            return batch
        raised, judged = self._losses(self._outputs(start), batch, 0.0)
        return {**batch, "raised_at_start": raised, "judged_at_start": judged}

    def _losses(self, outputs, batch: Batch, progress) -> tuple[Losses, Losses]:
        """Returns what the tasks raise (or lower, if targeted) and are judged by."""
        own = tasks_lib.task_losses(
            self.tasks, outputs, batch["targets"], batch["masks"]
        )
        raised = dict(own)
        for name, surrogate in zip(self.tasks, self.losses, strict=bool(self.losses)):
            if surrogate is not None:
                case = self._case(name, outputs, batch, progress)
                raised[name] = SURROGATES[surrogate].loss(case)
        judged = own if self.judge == "loss" else self._errors(outputs, batch)
        return self._weighted(raised), self._weighted(judged)

    def _case(self, name: str, outputs, batch: Batch, progress) -> Case:
        return Case(
            batch["targets"][name],
            outputs[name],
            batch["masks"][name],
            tasks_lib.TASKS[name].loss,
            progress,
            self.targeted,
        )

    def _errors(self, outputs, batch: Batch) -> dict[str, tf.Tensor]:
        return {
            name: _error(
                tasks_lib.TASKS[name],
                batch["targets"][name],
                outputs[name],
                batch["masks"][name],
            )
            for name in self.tasks
        }

    def _weighted(self, losses: Losses) -> Losses:
        if not self.weights:
            return losses
        weights = zip(self.tasks, self.weights, strict=True)
        return {name: weight * losses[name] for name, weight in weights}

    def _outputs(self, x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        # An attacked model's batch norm must neither use nor move batch statistics.
        is_keras = isinstance(self.model, keras.Layer)
        outputs = inference.outputs(self.model, x) if is_keras else self.model(x)
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


def _error(task: tasks_lib.Task, target, output, mask) -> tf.Tensor:
    """Returns the share of wrong pixels, or the mean absolute error, [batch]."""
    metric = metrics.pixel_accuracy() if task.discrete else metrics.mae()
    total, count = tf.unstack(metric.statistics(target, output, mask, None), axis=-1)
    return tf.math.divide_no_nan(count - total if task.discrete else total, count)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskObjective:
    """A recipe with its batch: `(x, progress)` -> (ascend, score), float32 [batch].

    Attributes:
      recipe: What is computed.
      batch: {"targets": {task: tensor}, "masks": {task: tensor}}; once begun also what
        was computed at the start.
    """

    recipe: Recipe
    batch: Batch

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

    def begin(self, start: tf.Tensor) -> TaskObjective:
        """Returns this objective for one run from the images `start` [batch, ...].

        Its model is folded where that can be done (`models.inference`). Costs a forward
        pass if the balance compares losses to those at the start.
        """
        recipe = self.recipe.folded()
        return recipe.bind(recipe.started(self.batch, start))

    def with_losses(self, names: Iterable[str] | str) -> TaskObjective:
        """Returns it, not begun, raising other losses; see `losses` of `objective`."""
        return self._changed(losses=arguments.surrogates(names, self.recipe.tasks))

    def with_judge(self, name: str) -> TaskObjective:
        """Returns it, not begun, judged otherwise; see `judge` of `objective`."""
        return self._changed(judge=name)

    def _changed(self, **fields) -> TaskObjective:
        batch = {kind: self.batch[kind] for kind in ("targets", "masks")}
        return dataclasses.replace(self.recipe, **fields).bind(batch)


def objective(
    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    targets: Mapping[str, Any],
    masks: Mapping[str, Any],
    tasks: Iterable[str] | str | None = None,
    balance: str = "sum",
    pixels: Any | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    losses: Iterable[str] | str = (),
    targeted: bool = False,
    classes: Iterable[int] | None = None,
    judge: str = "loss",
    fold: bool = True,
) -> TaskObjective:
    """Returns the objective that raises the attacked tasks' losses on one batch.

    What it climbs and what it judges points by are two things. The score is made of the
    tasks' own training losses (or errors) whatever is climbed, is the same at any
    progress, and rises as the attack succeeds. So attacks with different surrogates
    compare. With the balances "sum" and "mean" it is that sum or mean, weighted; with
    the others, which want no task's scale to count, the mean logarithm of the losses:
    the same order as relative to any start; and with "worst" the largest logarithm of
    a loss relative to that at the run's start (of the loss itself, outside a run).

    Args:
      model: Images [batch, H, W, 3] in [0, 1] -> {task: output}. A Keras model is
        called with `training=False`.
      targets: {task: [batch, H, W] or [batch, H, W, channels]}.
      masks: {task: [batch, H, W]}, zero where there is no target.
      tasks: Which of them are attacked, by names, aliases or letters; None is all.
      balance: A key of BALANCES: how the losses become one number.
      pixels: 0/1 mask, [batch, H, W] or [H, W], of the output pixels that are attacked;
        None is all. Losses are means over those of them that have targets.
      weights: {attacked task: number from 0}, 1 where missing; for "sum" and "mean".
      losses: Keys of SURROGATES: each attacked task raises the one that fits its kind,
        or else its own training loss.
      targeted: Whether `targets` are what the attacker wants to see. Then what is
        climbed, and the score, is minus the loss towards them.
      classes: Of tasks with classes, only pixels whose target is one of these are
        attacked; None is all.
      judge: What scores are made of: "loss", or "error" (the share of wrong pixels for
        classes, the mean absolute error otherwise).
      fold: Whether attacks may fold a functional Keras model's batch norms into its
        convolutions, which is faster and changes nothing but rounding.

    Raises:
      InputError: A task without target or mask, an unknown name, settings that do not
        go together, masks that do not fit; or, when called, a model without an attacked
        task.
    """
    names = tasks_lib.resolve(tuple(targets) if tasks is None else tasks)
    for kind, given in (("target", targets), ("mask", masks)):
        for name in names:
            if name not in given:
                raise InputError(
                    f"Every attacked task needs a {kind}, got none for {name!r}, only "
                    f"for {', '.join(map(repr, given)) or 'no task at all'}."
                )
    recipe = Recipe(
        model,
        names,
        balance,
        arguments.weights(weights, names),
        arguments.surrogates(losses, names),
        bool(targeted),
        judge,
        fold,
    )
    targets = {name: tf.convert_to_tensor(targets[name]) for name in names}
    masks = {name: pixels_lib.restricted(masks[name], pixels) for name in names}
    if classes is not None:
        masks = pixels_lib.of_classes(classes, targets, masks)
    return recipe.bind({"targets": targets, "masks": masks})
