# SPDX-License-Identifier: Apache-2.0
"""What an attack on a multi-task model raises: one number per image.

    model -> outputs -> each attacked task's loss (its own, or one of ATTACK_LOSSES)
          -> one number to climb (one of BALANCES) and one to judge points by

Nearly everything is a plain function of the attacked tasks' losses, so one backward
pass serves any number of tasks, and tasks that are not attacked cost nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtr_tf.attacks import balance as balance_lib
from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import judging
from mtr_tf.attacks import output_mask
from mtr_tf.attacks import sparing
from mtr_tf.attacks.attack_losses import ATTACK_LOSSES
from mtr_tf.attacks.attack_losses import Case
from mtr_tf.attacks.balance import BALANCES
from mtr_tf.attacks.balance import Losses
from mtr_tf.errors import InputError
from mtr_tf.errors import is_real
from mtr_tf.models import folding
from mtr_tf.models import randomness
from mtr_tf.models import stateless
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import losses as losses_lib
from mtr_tf.tasks import resolve
from mtr_tf.tasks import table
from mtr_tf.tasks import task_set
from mtr_tf.tasks.task import MAP

Tasks = str | Iterable[str | Task] | Mapping[str, Task]
Tensors = Mapping[str, tf.Tensor]
Batch = Mapping[str, Any]
"""{"targets": {task: tensor}, "masks": {task: tensor}}, and what a run adds."""

_NEVER_NEGATIVE = (
    losses_lib.cross_entropy,
    losses_lib.binary_cross_entropy,
    losses_lib.l1,
    losses_lib.l2,
)
# Rounding may take a loss this far below 0: 1 - cos, where cos is 1, in half precision.
_ROUNDING = 1e-4
_CHECK_IMAGES = 2  # Images that a Keras model is checked on.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of an objective but its batch: a pure function of (batch, x, progress).

    Attributes:
      model: Images [batch, H, W, 3] -> {task: output}.
      tasks: The attacked tasks.
      balance: A key of BALANCES.
      weights: Of each attacked task's loss; empty where all are 1.
      losses: The attack loss that each attacked task raises, None for its own loss;
        empty where all raise their own.
      targeted: Whether the targets are what the attacker wants.
      judge: One of `judging.JUDGES`.
      fold: Whether attacks fold the model's batch norms.
      eot: Draws of the model's own noise whose mean gradient attacks follow.
      spare: The tasks whose losses stay at or below those of the clean image.
      restricted: Whether only some of the output's places are attacked.
      break_ties: Whether points of equal harm may be told apart; see `judging`.
    """

    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    tasks: TaskSet
    balance: str
    weights: tuple[float, ...] = ()
    losses: tuple[str | None, ...] = ()
    targeted: bool = False
    judge: str = judging.AUTO
    fold: bool = True
    eot: int = 1
    spare: TaskSet = TaskSet(())
    restricted: bool = False
    break_ties: bool = True

    def checked(self) -> Recipe:
        """Returns the recipe; raises InputError where settings do not fit together."""
        checks.check_name("balance", self.balance, BALANCES)
        judging.check(self.judge)
        checks.check_count("eot", self.eot)
        if self.weights and not BALANCES[self.balance].weighted:
            raise InputError(
                "Weights work only with the balances "
                f"{', '.join(b for b in BALANCES if BALANCES[b].weighted)}; got them "
                f"with {self.balance!r}."
            )
        for name in self.spare:
            if name in self.tasks:
                raise InputError(
                    f"A spared task must not be attacked too, but {name!r} is; remove "
                    "it from one of the two."
                )
        if self.spare and self.eot > 1:
            raise InputError(
                "Tasks can be spared only with a single draw of a random model's "
                f"noise; got eot={self.eot}. Give eot=1, or spare no tasks."
            )
        for name in filter(None, self.losses):
            if ATTACK_LOSSES[name].signed and BALANCES[self.balance].relative:
                raise InputError(
                    f"The balance {self.balance!r} divides losses by losses, so they "
                    f"must not be negative, but {name!r} may be; choose another."
                )
            if self.targeted and not ATTACK_LOSSES[name].targetable:
                raise InputError(
                    f"The loss {name!r} has no targeted form; choose another."
                )
        return self

    def __call__(
        self, batch: Batch, x: tf.Tensor, progress: tf.Tensor | float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (ascend, score), float32 [batch]; see `objective`.

        A batch that `begun` returns also has, where the balance uses them, "before",
        losses that others are compared with, and "clean", rows of the clean images; and
        where tasks are spared, "kept", their losses of the clean images. Where the
        attack changes a part of the images, a batch has "movable"
        (`balance.sum_of_steepest`).
        """
        clean_losses = batch.get("kept")
        x = tf.convert_to_tensor(x)
        if clean_losses is None:
            return self._evaluate(batch, x, progress)[:2]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            ascend, score, own_losses = self._evaluate(batch, x, progress)
        spared_losses = {name: own_losses[name] for name in self.spare}
        ascend = sparing.with_bent_gradient(
            tape, x, ascend, spared_losses, clean_losses, batch.get("move")
        )
        return ascend, sparing.score(score, spared_losses, clean_losses)

    def _evaluate(
        self, batch: Batch, x: tf.Tensor, progress: tf.Tensor | float
    ) -> tuple[tf.Tensor, tf.Tensor, Losses]:
        """Returns what is climbed and the score, before sparing, and own losses."""
        balance = BALANCES[self.balance]
        # Watches nothing, and so records nothing, unless the balance needs it.
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape:
            if balance.steepest:
                tape.watch(x)
            outputs = self._outputs(x, batch, progress)
            own_losses = self._own_losses(outputs, batch)
            raised_losses = self._raised_losses(own_losses, outputs, batch, progress)
        ascend = balance(raised_losses, batch.get("before"), progress)
        if balance.steepest:
            ascend = balance_lib.sum_of_steepest(
                tape,
                x,
                list(raised_losses.values()),
                balance.steepest,
                batch.get("movable"),
            )
        score = judging.score(
            self.judged_by,
            balance,
            self._rows(own_losses, outputs, batch),
            self.weights,
            batch.get("clean"),
            self.targeted,
            self.tasks,
            self._nearness(outputs, batch),
            self.eot,
        )
        return -ascend if self.targeted else ascend, score, own_losses

    @property
    def looked_at(self) -> TaskSet:
        """The attacked tasks, and those spared."""
        return TaskSet((*self.tasks.values(), *self.spare.values()))

    @property
    def judged_by(self) -> str:
        """What scores are made of, "harm" or "loss"."""
        return judging.resolve(self.judge, any(self.losses))

    @property
    def needs_clean(self) -> bool:
        """Whether scores compare with the clean image."""
        compares_clean = BALANCES[self.balance].compared == "clean"
        return bool(self.spare) or (compares_clean and self.judged_by == judging.LOSS)

    @property
    def divided(self) -> tuple[str, ...]:
        """The attacked tasks whose own losses divide and may be negative: a user's.

        Losses divide where they are climbed (not where an ensemble's results are only
        compared) or where they are compared with those of the clean images.
        """
        balance = BALANCES[self.balance]
        if not balance.relative:
            return ()
        compares_clean = balance.compared == "clean" and self.judged_by == judging.LOSS
        losses = self.losses or (None,) * len(self.tasks)
        return tuple(
            name
            for name, loss in zip(self.tasks, losses, strict=True)
            if (compares_clean or (loss is None and self.break_ties))
            and self.tasks[name].loss not in _NEVER_NEGATIVE
        )

    def folded(self) -> Recipe:
        """Returns the recipe with the model folded as it is now, if asked for."""
        names = tuple(self.looked_at)
        if not self.fold or not folding.can_fold(self.model, names):
            return self
        return dataclasses.replace(self, model=folding.fold(self.model, names))

    def look_at_losses(self, batch: Batch, x: tf.Tensor) -> None:
        """Checks, on `x`, losses that divide; `x` is the batch's first images or all.

        Must be called outside of graphs: XLA drops the check that is in them.

        Raises:
          InputError: One is negative.
        """
        if not self.divided:
            return
        first_batch = {
            kind: {name: tensor[: len(x)] for name, tensor in batch[kind].items()}
            for kind in ("targets", "masks")
        }
        self._own_losses(self._outputs(x, first_batch, 0.0), first_batch)

    def bind(self, batch: Batch) -> TaskObjective:
        """Returns the objective of this recipe on a batch."""
        return TaskObjective(self, batch)

    def begun(self, batch: Batch, start: tf.Tensor, clean: tf.Tensor) -> Batch:
        """Returns the batch with the losses that balance and score compare with."""
        if self.spare:
            outputs = self._outputs(clean, batch, 0.0)
            own_losses = self._own_losses(outputs, batch)
            batch = {**batch, "kept": {name: own_losses[name] for name in self.spare}}
        reference = BALANCES[self.balance].compared
        if not reference:
            return batch
        point = start if reference == "start" else clean

        def compare(number: int | tf.Tensor) -> dict[str, Any]:
            outputs = self._outputs(point, {**batch, "draw": number}, 0.0)
            own_losses = self._own_losses(outputs, batch)
            values = {"before": self._raised_losses(own_losses, outputs, batch, 0.0)}
            if reference == "clean" and self.judged_by == judging.LOSS:
                values["clean"] = self._rows(own_losses, outputs, batch)
            return values

        return {**batch, **base.mean(compare, self.eot)}

    def _own_losses(self, outputs, batch: Batch) -> Losses:
        """Returns each task's own loss; those that divide are not negative."""
        losses = table.task_losses(
            self.looked_at, outputs, batch["targets"], batch["masks"]
        )
        return _nonnegative_losses(self.balance, losses, self.divided)

    def _raised_losses(
        self, own_losses: Losses, outputs, batch: Batch, progress
    ) -> Losses:
        """Returns what the tasks raise (or lower, if targeted)."""
        losses = {name: own_losses[name] for name in self.tasks}
        for name, loss in zip(self.tasks, self.losses, strict=bool(self.losses)):
            if loss is not None:
                case = self._case(name, outputs, batch, progress)
                losses[name] = ATTACK_LOSSES[loss].loss(case)
        if not self.weights:
            return losses
        weights = zip(self.tasks, self.weights, strict=True)
        return {name: weight * losses[name] for name, weight in weights}

    def _case(self, name: str, outputs, batch: Batch, progress) -> Case:
        return Case(
            batch["targets"][name],
            outputs[name],
            batch["masks"][name],
            self.tasks[name].loss,
            progress,
            self.targeted,
            self.tasks[name].kind,
        )

    def _rows(self, own_losses: Losses, outputs, batch: Batch) -> judging.Rows:
        """Returns the rows that scores are made of; reuses the own losses."""
        rows = {}
        for name, task in self.tasks.items():
            metric = judging.metric(task, self.judged_by)
            if self.judged_by == judging.LOSS:
                rows[name] = {metric.name: own_losses[name][:, tf.newaxis]}
            else:
                case = (batch["targets"][name], outputs[name], batch["masks"][name])
                channels = task.channels or outputs[name].shape[-1]
                rows[name] = {metric.name: metric.statistics(*case, channels)}
        return rows

    def _nearness(self, outputs, batch: Batch) -> Losses:
        """Returns the nearness of the tasks whose harms may tie, {task: [batch]}."""
        if not self.break_ties:
            return {}
        settings = (self.weights, self.restricted, self.eot)
        names = judging.may_tie(self.judged_by, self.tasks, *settings)
        return {n: judging.nearness(self._case(n, outputs, batch, 0.0)) for n in names}

    def _outputs(self, x: tf.Tensor, batch: Batch, progress: tf.Tensor | float):
        # An attacked model's batch norm must neither use nor move batch statistics.
        key = _noise_key(batch, progress)
        outputs = stateless.outputs(self.model, x, key)
        if not isinstance(outputs, Mapping):
            raise InputError(
                "The model must return a dict {task: output}, but it returned a "
                f"{type(outputs).__name__}; wrap it in a function that names its tasks."
            )
        for name in self.looked_at:
            if name not in outputs:
                raise InputError(
                    f"The model has no task {name!r} to "
                    f"{'attack' if name in self.tasks else 'spare'}, only "
                    f"{', '.join(map(repr, outputs))}."
                )
        return _checked_outputs(self.looked_at, outputs, batch, progress)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskObjective:
    """A recipe with its batch: `(x, progress)` -> (ascend, score), float32 [batch].

    Attributes:
      recipe: What is computed.
      batch: {"targets": {task: tensor}, "masks": {task: tensor}}; after `begin` also
        what was computed there.
    """

    recipe: Recipe
    batch: Batch

    @property
    def reusable(self) -> bool:
        """Whether the recipe's graph serves later batches: all state is in variables.

        True for functional and sequential Keras models; any other callable, including a
        subclassed model, may depend on Python values.
        """
        return type(self.recipe.model).__name__ in ("Functional", "Sequential")

    @property
    def spares(self) -> bool:
        """Whether points that do not spare some tasks score below all others."""
        return bool(self.recipe.spare)

    def __call__(
        self, x: tf.Tensor, progress: tf.Tensor | float = 0.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (ascend, score) of the images x: means over the draws of noise."""
        if "draw" in self.batch or self.draws == 1:
            return self.recipe(self.batch, x, progress)
        results = [self.drawn(number)(x, progress) for number in range(self.draws)]
        return tuple(
            tf.add_n(parts) / self.draws for parts in zip(*results, strict=True)
        )

    @property
    def draws(self) -> int:
        """Number of draws of the model's noise that an attack takes the mean over."""
        return self.recipe.eot

    def drawn(self, number: int | tf.Tensor) -> TaskObjective:
        """Returns the objective under the draw of that number; see `draws`."""
        return self.recipe.bind({**self.batch, "draw": number})

    def seeded(self, keys: tf.Tensor) -> TaskObjective:
        """Returns the objective with noise from an attack's seeds, int64 [batch, 2]."""
        return self.recipe.bind({**self.batch, "keys": keys})

    def moving(self, move: sparing.Move) -> TaskObjective:
        """Returns the objective, given how the attack moves; see `sparing`."""
        if not self.recipe.spare:
            return self
        return self.recipe.bind({**self.batch, "move": move})

    def confined(self, movable: sparing.Move) -> TaskObjective:
        """Returns the objective with `movable` as in `balance.sum_of_steepest`."""
        return self.recipe.bind({**self.batch, "movable": movable})

    def checked(self, x: tf.Tensor, own_losses: bool = True) -> TaskObjective:
        """Returns the objective, its model checked on `x`; call it outside of graphs.

        `own_losses` says whether the attack raises the tasks' own losses if no others
        are named; then these are checked, too.
        """
        recipe = self.recipe
        if isinstance(recipe.model, keras.Layer):
            x = x[:_CHECK_IMAGES]  # A function may take batches of this size alone.
            if recipe.fold:
                folding.check(recipe.model, tuple(recipe.looked_at), x)
            randomness.say_once(recipe.model, x, recipe.eot)
        if own_losses:
            recipe.look_at_losses(self.batch, x)
        return self

    def look_at_losses(self, x: tf.Tensor) -> None:
        """Raises `InputError` where losses that divide are negative; see `Recipe`."""
        self.recipe.look_at_losses(self.batch, x)

    def unchanged(self) -> contextlib.AbstractContextManager[None]:
        """Restores what the model changes behind Keras' back; see `stateless`."""
        return stateless.unchanged(self.recipe.model)

    def begin(self, start: tf.Tensor, clean: tf.Tensor | None = None) -> TaskObjective:
        """Returns this objective for one run from `start`, around `clean` images.

        Both are [batch, ...]; without `clean` the start is the clean image. The model
        is folded where that can be done (`models.folding`). Costs a forward pass if
        the balance compares losses with those of either.
        """
        recipe = self.recipe.folded()
        clean = start if clean is None else clean
        return recipe.bind(recipe.begun(self.batch, start, clean))

    def with_losses(self, names: Iterable[str] | str) -> TaskObjective:
        """Returns the objective, not yet begun, with other losses; see `objective`."""
        return self._replace(losses=_checked_losses(names, self.recipe.tasks))

    def with_judge(self, name: str) -> TaskObjective:
        """Returns the objective, not yet begun, with another judge; see `objective`."""
        return self._replace(judge=name)

    def in_ensemble(self) -> TaskObjective:
        """Returns the objective, not yet begun; the judge "auto" becomes "harm"."""
        judge = judging.resolve(self.recipe.judge, any(self.recipe.losses), True)
        return self.with_judge(judge)

    def with_ties(self) -> TaskObjective:
        """Returns the objective, not yet begun; points of equal harm score the same."""
        return self._replace(break_ties=False)

    def _replace(self, **fields) -> TaskObjective:
        names = ("targets", "masks", "keys", "movable")
        batch = {kind: self.batch[kind] for kind in names if kind in self.batch}
        return dataclasses.replace(self.recipe, **fields).checked().bind(batch)


@dataclasses.dataclass(frozen=True, eq=False)
class Unbound:
    """An objective without its batch: checked and made once, bound to many batches.

    Attributes:
      recipe: What is computed.
      pixels: As of `objective`; None is all.
      classes: As of `objective`; empty is all.
    """

    recipe: Recipe
    pixels: Any | None = None
    classes: tuple[int, ...] = ()

    def bind(self, batch: Batch, spared_batch: Batch | None = None) -> TaskObjective:
        """Returns the objective on a batch, of tensors that fit the tasks.

        Args:
          batch: {"targets": {task: tensor}, "masks": {task: tensor}}; other entries
            are ignored.
          spared_batch: The same for the spared tasks; None: `batch`. These tasks keep
            their own targets, and all their places, whatever is done to the attacked
            ones.
        """
        names = self.recipe.tasks
        targets, masks = _tensors(batch, names)
        if self.pixels is not None:
            masks = output_mask.of_pixels(self.pixels, masks, names)
        if self.classes:
            masks = output_mask.of_classes(self.classes, targets, masks, names)
        spared = _tensors(
            batch if spared_batch is None else spared_batch, self.recipe.spare
        )
        return self.recipe.bind(
            {"targets": targets | spared[0], "masks": masks | spared[1]}
        )


def _tensors(
    batch: Batch, names: Iterable[str]
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the targets and masks of these tasks as tensors."""
    targets = {name: tf.convert_to_tensor(batch["targets"][name]) for name in names}
    masks = {name: tf.cast(batch["masks"][name], tf.float32) for name in names}
    return targets, masks


def unbound(
    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    tasks: Tasks,
    balance: str = "sum",
    pixels: Any | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    losses: Iterable[str] | str = (),
    targeted: bool = False,
    classes: Iterable[int] | None = None,
    judge: str = judging.AUTO,
    fold: bool = True,
    eot: int = 1,
    spare: Tasks = (),
) -> Unbound:
    """Returns what `objective` does, without its batch; arguments as there.

    For many batches: `unbound(model, tasks).bind(batch)`. All settings are checked
    here, so that nothing is checked where batches are bound within a graph.

    Raises:
      InputError: An unknown name, or settings that do not go together.
    """
    names = task_set(tasks)
    if not names:
        raise InputError("At least one task must be attacked; name one.")
    classes = () if classes is None else output_mask.checked_classes(classes, names)
    recipe = Recipe(
        model,
        names,
        balance,
        _checked_weights(weights, names),
        _checked_losses(losses, names),
        bool(targeted),
        judge,
        fold,
        eot,
        task_set(spare),
        restricted=pixels is not None or bool(classes),
    )
    if pixels is not None:
        output_mask.check_maps(names)
    return Unbound(recipe.checked(), pixels, classes)


def objective(
    model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    targets: Mapping[str, Any],
    masks: Mapping[str, Any],
    tasks: Tasks | None = None,
    balance: str = "sum",
    pixels: Any | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    losses: Iterable[str] | str = (),
    targeted: bool = False,
    classes: Iterable[int] | None = None,
    judge: str = judging.AUTO,
    fold: bool = True,
    eot: int = 1,
    spare: Tasks = (),
) -> TaskObjective:
    """Returns the objective that raises the attacked tasks' losses on one batch.

    What it climbs and how it judges points are two different things. The score compares
    iterates, restarts and members of ensembles; it is the same at any progress and for
    any start. With judge "harm", the score is for classes and labels the share that is
    wrong, otherwise the mean error in the task's headline metric (`Task.harm`); for
    several tasks the geometric mean of these, so that no task's unit or scale matters.
    Where few places count (classes or labels that are no maps, or of which a part is
    attacked), points of equal harm differ a little, by less than one wrong place: those
    whose logits are nearer to another answer score more. With judge "loss", it is made
    from the tasks' own losses: with "sum" and "mean" their weighted sum or
    mean; with "dgba_paper" sum_t L_t / L_t(clean); with "worst" the largest log(L_t /
    L_t(clean)) (of L_t itself, outside a run); with the others, where no task's scale
    should matter, the mean logarithm of the losses (below 0 it goes on as a line). The
    balances that divide losses by losses refuse a negative one.

    Args:
      model: Images [batch, H, W, 3] in [0, 1] -> {task: output}. A Keras model is
        called with `training=False`.
      targets: {task: [batch, H, W] or [batch, H, W, channels]}; for values of the whole
        image [batch] or [batch, channels]; any other places work too.
      masks: {task: [batch, H, W]}, zero where there is no target; [batch] of one value
        per image.
      tasks: The tasks to attack: names, aliases or letters of the eleven tasks, or your
        own `tasks.Task`; None for all.
      balance: A key of BALANCES: how the losses are combined into one number.
      pixels: 0/1 mask, [batch, H, W] or [H, W], which says which output pixels of maps
        are attacked; None for all. Losses are means over the attacked pixels that have
        targets.
      weights: {attacked task: number}, 1 where missing; for "sum" and "mean". A task
        with a negative weight gets better while the others get worse: the joint harm is
        divided by its harm.
      losses: Keys of ATTACK_LOSSES: each attacked task raises the one that fits its
        kind, or else its own loss, whatever the model was trained with.
      targeted: Whether `targets` are what the attacker wants. What is climbed, and the
        score, are then minus the loss towards them.
      classes: For tasks with classes, attack only pixels whose target is one of these;
        None for all.
      judge: "harm", "loss", or "auto": "loss" where every task raises its own loss
        (`losses` empty) outside ensembles, else "harm".
      fold: Whether attacks may fold a functional Keras model's batch norms into its
        convolutions, which is faster and changes nothing but rounding. Not done if the
        outputs for the first batch differ.
      eot: For a Keras model with its own noise (such as dropout that is always on):
        attacks follow the mean gradient over this many draws, and judge points by the
        mean score (expectation over transformation, Athalye et al. 2018). Draws are new
        at each step and depend on the attack's seed, so the same seed gives the same
        bits.
      spare: Tasks that are kept, image by image, at or below their loss on the clean
        image, against their targets here and over all places of their masks: attacks
        bend their steps, and prefer points at which no spared task is worse to all
        others (`sparing`). Not for several draws (`eot`).

    Raises:
      InputError: A task has no target or mask, a name is unknown, settings do not fit
        together, or masks do not fit; or, when called, the model lacks an attacked
        task.
    """
    spared_tasks = _with_places(task_set(spare), targets)
    if tasks is None:
        tasks = tuple(name for name in targets if name not in spared_tasks)
    attacked_tasks = _with_places(task_set(tasks), targets)
    unbound_objective = unbound(
        model,
        attacked_tasks,
        balance,
        pixels,
        weights=weights,
        losses=losses,
        targeted=targeted,
        classes=classes,
        judge=judge,
        fold=fold,
        eot=eot,
        spare=spared_tasks,
    )
    names = unbound_objective.recipe.looked_at
    for kind, tensors in (("target", targets), ("mask", masks or {})):
        for name in names:
            if name not in tensors:
                ones = " with ones where there is a target" if kind == "mask" else ""
                raise InputError(
                    f"No {kind} was given for {name!r}. Pass {kind}s={{{name!r}: ...}}"
                    f"{ones}, or name other tasks."
                )
    targets = {name: tf.convert_to_tensor(targets[name]) for name in names}
    masks = {name: tf.convert_to_tensor(masks[name]) for name in names}
    _check_batch(names, targets, masks)
    return unbound_objective.bind({"targets": targets, "masks": masks})


def _with_places(tasks: TaskSet, targets: Mapping[str, Any]) -> TaskSet:
    """Returns the tasks; one that does not state its places gets its targets'."""
    placed_tasks = []
    for name, task in tasks.items():
        if task.places is None and name in targets:
            rank = tf.convert_to_tensor(targets[name]).shape.rank
            task = task.bound(places=rank - 1 - (not task.discrete))
        placed_tasks.append(task)
    return TaskSet(placed_tasks)


def _noise_key(batch: Mapping[str, Any], progress: tf.Tensor | float) -> tf.Tensor:
    """Returns the key, int64 [2], of a random model's noise in one call.

    It depends on the seed (that of the batch's first image), the step of an attack and
    the draw. Restarts and radii have the same noise at the same step, so that they can
    be compared.
    """
    keys = batch.get("keys")
    key = tf.zeros(2, tf.int64) if keys is None else stateless.batch_key(keys)
    step = tf.bitcast(tf.cast(progress, tf.float32), tf.int32)
    return stateless.fold_in(stateless.fold_in(key, step), batch.get("draw", 0))


# The arguments of an objective, checked.


def _checked_weights(
    weights: Mapping[str, float] | None, names: TaskSet
) -> tuple[float, ...]:
    """Returns a weight per attacked task, checked; () where none is given."""
    if not weights:
        return ()
    all_tasks = TASKS.replaced(*names.values())
    by_name = dict(
        zip(resolve(weights, all_tasks.values()), weights.values(), strict=True)
    )
    for name, weight in by_name.items():
        if name not in names:
            raise InputError(
                f"Weights must be for attacked tasks ({', '.join(map(repr, names))}); "
                f"got one for {name!r}."
            )
        least, most = checks.WEIGHTS
        size = abs(float(weight)) if is_real(weight) else math.nan
        if size != 0 and not least <= size <= most:
            raise InputError(
                f"Weights must be 0 or of size {least:g} to {most:g}; got {weight!r} "
                f"for {name!r}."
            )
    if not any(by_name.get(name, 1) > 0 for name in names):
        raise InputError(
            "At least one attacked task's weight must be above 0; to pull outputs "
            "towards their targets, give targeted=True."
        )
    return tuple(float(by_name.get(name, 1)) for name in names)


def _checked_losses(
    losses: Iterable[str] | str, names: TaskSet
) -> tuple[str | None, ...]:
    """Returns each attacked task's loss, checked; () where all raise their own."""
    losses = losses.split(",") if isinstance(losses, str) else losses
    by_task: dict[str, str] = {}
    for loss in losses:
        checks.check_name("A loss", loss, ATTACK_LOSSES)
        fitting_names = [n for n in names if ATTACK_LOSSES[loss].fits(names[n])]
        if not fitting_names:
            raise InputError(
                f"Each loss must fit an attacked task, but {loss!r} fits none of "
                f"{', '.join(map(repr, names))}; leave it out."
            )
        for name in fitting_names:
            if name in by_task:
                raise InputError(
                    f"At most one loss may fit a task, but {by_task[name]!r} and "
                    f"{loss!r} both fit {name!r}; choose one."
                )
            by_task[name] = loss
    return tuple(by_task.get(name) for name in names) if by_task else ()


# Whether targets, masks and outputs fit each other, checked eagerly and in graphs.


def _check_batch(names: TaskSet, targets: Tensors, masks: Tensors) -> None:
    """Raises InputError where the shape of a target or mask does not fit its task."""
    for name, task in names.items():
        target, mask = targets[name].shape, masks[name].shape
        axes = _axes(task, "" if task.discrete else "channels")
        rank = 1 + task.axes + (not task.discrete)
        if not target.is_compatible_with([None] * rank):
            raise InputError(
                f"The target of {name!r} must be {axes}, but its shape is {target}; "
                "reshape it."
            )
        expected = target[: 1 + task.axes]
        if not mask.is_compatible_with(expected):
            raise InputError(
                f"The mask of {name!r} must have one number per place of its target, "
                f"shape {expected}, but its shape is {mask}; reshape it."
            )


@tf.autograph.experimental.do_not_convert  # There is nothing to convert.
def _checked_outputs(
    names: TaskSet,
    outputs: Tensors,
    batch: Batch,
    progress: tf.Tensor | float,
) -> dict[str, tf.Tensor]:
    """Returns the outputs, once they fit their targets, and labels fit the outputs.

    Shapes are compared when the graph is built, or when it runs if they are not known
    before. Labels are checked where a run begins and ends, which costs next to nothing
    beside the model; those of masked pixels may be anything.

    Raises:
      InputError: They do not fit (see `base.require` for graphs).
    """
    results = {}
    for name, task in names.items():
        output = tf.convert_to_tensor(outputs[name])
        target, mask = batch["targets"][name], batch["masks"][name]
        _check_shape(task, output, target)
        assertions = _size_checks(task, output, target, mask)
        if task.discrete:
            assertions.append(_label_check(name, output, target, mask, progress))
        with tf.control_dependencies([] if tf.executing_eagerly() else assertions):
            results[name] = tf.identity(output)
    return results


@tf.autograph.experimental.do_not_convert  # There is nothing to convert.
def _nonnegative_losses(balance: str, losses: Losses, names: Iterable[str]) -> Losses:
    """Returns the losses, once those that divide are not negative (`base.require`)."""
    assertions = [_sign_check(balance, name, losses[name]) for name in names]
    if not assertions or tf.executing_eagerly():
        return losses
    with tf.control_dependencies(assertions):
        return {name: tf.identity(loss) for name, loss in losses.items()}


def _sign_check(balance: str, name: str, loss: tf.Tensor) -> tf.Tensor:
    """The check that a task's own loss, which divides, is not negative."""
    choices = [b for b in BALANCES if not BALANCES[b].relative]

    def words():
        return [
            f"The balance {balance!r} divides losses by losses, but that of {name!r} "
            "is negative,",
            tf.reduce_min(loss),
            f"; choose {', '.join(choices[:-1])} or {choices[-1]}, or give the task a "
            "loss that is never below 0.",
        ]

    return base.require(~tf.reduce_any(loss < -_ROUNDING), words)


def _axes(task: Task, last: str = "") -> str:
    """The axes of a task's tensors in words; `last` comes after the places."""
    places = {0: [], MAP: ["H", "W"]}.get(task.axes, ["*places"])
    return f"[{', '.join(['batch', *places, *filter(None, [last])])}]"


def _check_shape(task: Task, output, target) -> None:
    expected = target.shape.concatenate([None]) if task.discrete else target.shape
    if not output.shape.is_compatible_with(expected):
        axes = _axes(task, "classes") if task.discrete else "its target's shape"
        raise InputError(
            f"The output of {task.name!r} must be {axes}, here {expected}, but its "
            f"shape is {output.shape}; give model, images and targets the same size."
        )


def _size_checks(task: Task, output, target, mask) -> list[tf.Tensor]:
    """Checks of sizes that are not known before the graph runs."""
    shapes = output.shape, target.shape, mask.shape
    if all(shape.is_fully_defined() for shape in shapes):
        return []
    sizes = [tf.shape(tensor)[: 1 + task.axes] for tensor in (output, target, mask)]
    equal = tf.reduce_all(tf.equal(sizes[0], sizes[1]) & tf.equal(sizes[1], sizes[2]))

    def words():
        sentence = f"output, target and mask of {task.name!r} must have the same size"
        parts = [f"Images, {sentence}" if task.is_map else sentence.capitalize()]
        for kind, size in zip(("output", "target", "mask"), sizes, strict=True):
            parts += [f"; got {kind}s of", size[0]]
            for axis in range(task.axes):
                parts += ["x", size[1 + axis]]
        layout = "batch x height x width" if task.is_map else "batch, then places"
        return [*parts, f"({layout})."]

    return [base.require(equal, words)]


def _label_check(name: str, output, target, mask, progress) -> tf.Tensor:
    """The check that labels are classes, where the mask is not zero."""
    classes = tf.shape(output)[-1]

    def wrong():
        labels = tf.cast(target, tf.int64)
        outside = (labels < 0) | (labels >= tf.cast(classes, tf.int64))
        return outside & tf.cast(mask, tf.bool)

    def words():
        labels = tf.cast(target, tf.int64)
        label = tf.reduce_max(tf.where(wrong(), labels, labels.dtype.min))
        return [
            f"Labels of {name!r} must be below its number of classes,",
            classes,
            ", and not negative, where the mask is not zero; got",
            label,
            "; mask such places (for AdversarialModel: by ignore_class of the loss, or "
            "by any class with a sample weight of 0).",
        ]

    progress = tf.convert_to_tensor(progress, tf.float32)
    at_end = (progress <= 0) | (progress >= 1)
    holds = tf.cond(at_end, lambda: ~tf.reduce_any(wrong()), lambda: tf.constant(True))
    return base.require(holds, words)
