# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: every combination of attacks, objectives, radii and groups."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import checks
from mtr_tf.attacks import ensemble
from mtr_tf.attacks import judging
from mtr_tf.attacks import kinds
from mtr_tf.attacks import objectives
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.attacks.kinds import Kind
from mtr_tf.attacks.kinds import Member
from mtr_tf.attacks.objectives import Tasks
from mtr_tf.config.attack import OWN_LOSS
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_block
from mtr_tf.config.attack import parse_weights
from mtr_tf.errors import InputError
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import own_code
from mtr_tf.tasks import resolve
from mtr_tf.tasks import task_set
from mtr_tf.tasks.groups import parse_groups
from mtr_tf.tasks.groups import spared

# Versions of rules that results depend on; cells of other versions are run again.
_JOINT_HARM = 2  # How harms of several tasks are combined.
_LOSSES_OF_0 = 2  # What losses of 0 count as, where losses are compared.
_TARGETED_OF_0 = 3  # The same, where the largest loss is to be lowered.
_TIES = 1  # How points of equal harm are ordered.
_NORMS_OF_MOVABLE = 1  # What gradients are divided by if a part may change.
_LENGTHS = 1  # What a user's record derives from its lengths.

_ANY_LENGTH = 1 / 510  # For comparing records: not 0, and in no sweep.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threat:
    """The allowed changes: `eps` in levels of 0-255 (linf), or a plain norm (l2).

    Only the `channels` of the images may change; all if it is empty.
    """

    norm: str = "linf"
    eps: float
    channels: tuple[int, ...] = ()

    @property
    def unit(self) -> int:
        """The divisor that turns lengths into those of images in [0, 1]."""
        return 255 if self.norm == "linf" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What an attack raises, and how its points are judged.

    Attributes:
      tasks: The tasks attacked together.
      losses: Names of `attacks.ATTACK_LOSSES`; empty: the tasks' own.
      balance: A name of `attacks.BALANCES`.
      weights: Pairs (task, number).
      targeted: Whether outputs are attacked towards other images' targets.
      pixels: How many output pixels are attacked, 0 for all.
      block: (rows, columns[, top, left]) of output pixels; empty for all.
      classes: Labels whose pixels are attacked; empty for all.
      judge: "harm" or "loss".
      eot: Draws of a random model's noise.
      spare: Tasks that stay at or below their clean losses.
    """

    tasks: tuple[str, ...]
    losses: tuple[str, ...] = ()
    balance: str = "sum"
    weights: tuple[tuple[str, float], ...] = ()
    targeted: bool = False
    pixels: int = 0
    block: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    judge: str = judging.LOSS
    eot: int = 1
    spare: tuple[str, ...] = ()

    @property
    def restricted(self) -> bool:
        """Whether only some of the output pixels are attacked."""
        return bool(self.pixels or self.block or self.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """An attack by its name in KINDS, and its settings.

    Attributes:
      name: As in KINDS.
      step_size: In the unit of `eps`; 0 for the attack's own.
      steps: For square, queries.
      restarts: For noise, draws.
      random_start: None in an ensemble: each member's own.
      radii: The stages of apgd.
      ensemble, queries: The settings of worst.
      scale: The model's (mean, std), for the released code's wrong scale.
    """

    name: str
    step_size: float = 0.0
    steps: int = 1
    restarts: int = 1
    random_start: bool | None = True
    radii: tuple[tuple[float, float], ...] = ()
    ensemble: tuple[str, ...] = ()
    queries: int = 0
    scale: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(
        cls,
        config: AttackConfig,
        name: str,
        scale: tuple[tuple[float, ...], ...] = (),
    ) -> AttackSettings:
        """The command's settings for the attack of a name; see `make_cells`."""
        return cls(
            name=name,
            step_size=config.step_size,
            steps=config.steps,
            restarts=config.restarts,
            random_start=config.random_start,
            ensemble=config.ensemble,
            queries=config.queries,
            scale=() if KINDS[name].bounded else scale,
        )

    @property
    def kind(self) -> Kind:
        """The entry of the attack in KINDS."""
        return KINDS[self.name]

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of an ensemble; empty for any other attack."""
        if self.kind.members is not None:
            return self.kind.members
        return tuple(Member(kind=name) for name in self.ensemble)

    def of_member(self, member: Member) -> AttackSettings:
        """The settings of a member, before `fitted`."""
        change = {"name": member.kind, "radii": member.radii, "ensemble": ()}
        return dataclasses.replace(self, **change)

    def passes(self, threat: Threat) -> float:
        """The cost of an image, in passes forwards and backwards."""
        if self.members:
            members = (self.of_member(m).fitted(threat.eps) for m in self.members)
            return sum(member.passes(threat) for member in members)
        lengths = (threat.eps / threat.unit, self.step_size / threat.unit)
        share = 1.0 if self.kind.gradient else kinds.FORWARD
        return self.make(threat.norm, *lengths).passes * share

    def fitted(self, eps: float) -> AttackSettings:
        """The settings, reset where they do not apply to the attack at this radius."""
        kind = self.kind
        step = self.step_size if "step_size" in kind.uses else 0.0
        restarts = self.restarts if "restarts" in kind.uses else 1
        steps = self.steps if "steps" in kind.uses else 1
        in_ensemble = "ensemble" in kind.uses
        if "queries" in kind.uses and not in_ensemble:
            steps = self.queries
        return dataclasses.replace(
            self,
            step_size=step or kind.step * eps,
            steps=steps,
            restarts=restarts,
            random_start=kind.start_at_random(self.random_start, restarts),
            ensemble=self.ensemble if in_ensemble else (),
            queries=self.queries if in_ensemble else 0,
        )

    def make(self, norm: str, epsilon, step_size) -> attacks.Attack:
        """The attack's record; lengths are those of images in [0, 1].

        Raises:
          InputError: The attack lacks the norm, or a setting is out of range.
        """
        fixed_norm = self.kind.fixed.get("norm")
        norms = (fixed_norm,) if fixed_norm else self.kind.norms
        if norm not in norms:
            raise InputError(
                f"--attack={self.name} needs --norm={' or '.join(norms)}, got {norm}."
            )
        mean, std = self.scale or (None, None)
        settings: dict[str, Any] = {"radii": self.radii} if self.radii else {}
        if not self.kind.uses.isdisjoint(("steps", "queries")):
            settings["steps"] = self.steps
        if "restarts" in self.kind.uses:
            settings["restarts"] = self.restarts
        return self.kind.make(
            epsilon,
            step_size=step_size,
            norm=norm,
            random_start=self.random_start,
            mean=mean,
            std=std,
            **settings,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack on one objective within one threat model.

    `place` is the position among the members of an ensemble, on which the random
    numbers depend; -1 outside of one. `all_tasks` has the records of the tasks, and
    `packed` says whether further inputs, which attacks leave unchanged, are packed
    behind images; both are no settings.
    """

    threat: Threat
    objective: ObjectiveSettings
    attack: AttackSettings
    seed: int = 0
    place: int = -1
    all_tasks: TaskSet = dataclasses.field(default=TASKS, compare=False, repr=False)
    packed: bool = dataclasses.field(default=False, compare=False, repr=False)

    @property
    def eps(self) -> float:
        """The radius, as in `threat`."""
        return self.threat.eps

    @property
    def tasks(self) -> tuple[str, ...]:
        """The attacked tasks."""
        return self.objective.tasks

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The attacked tasks and the spared ones."""
        return (*self.objective.tasks, *self.objective.spare)

    @property
    def numbers(self) -> tuple[float, float]:
        """(epsilon, step size) for images in [0, 1], as attacks take them."""
        unit = self.threat.unit
        return self.threat.eps / unit, self.attack.step_size / unit

    @property
    def family(self) -> Cell:
        """The cell without its `numbers`; cells with the same family share a graph."""
        if self._keeps_lengths:
            return self
        threat = dataclasses.replace(self.threat, eps=0.0)
        attack = dataclasses.replace(self.attack, step_size=0.0)
        return dataclasses.replace(self, threat=threat, attack=attack)

    @property
    def group(self) -> str:
        """The attacked tasks as one word."""
        return "+".join(self.tasks)

    @property
    def label(self) -> str:
        """The attack with the unusual settings of its objective, as one word."""
        goal = self.objective
        channels = "+".join(map(str, self.threat.channels))
        parts = (
            self.attack.name,
            "+".join(goal.losses),
            goal.balance if goal.balance != "sum" else "",
            "targeted" if goal.targeted else "",
            f"eot{goal.eot}" if goal.eot > 1 else "",
            "spare-" + "+".join(goal.spare) if goal.spare else "",
            f"channels{channels}" if channels else "",
            goal.judge if goal.judge != self._judge(judging.AUTO) else "",
        )
        return "-".join(filter(None, parts))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences to show wherever the results are shown."""
        if not self.attack.scale or not self.eps:
            return ()
        # The largest change of a value by the formulas of the released attack: by r, or
        # from 0 to the lower end of the box.
        reach = max(
            max(2 * self.eps * std, 255 * (mean - std))
            for mean, std in zip(*self.attack.scale, strict=True)
        )
        return (
            f"{self.attack.name} does not stay within eps, just like the released "
            f"code: at eps {self.eps:g} values move by up to {reach:.3g} levels, so "
            "it does not measure robustness.",
        )

    @property
    def members(self) -> tuple[Cell, ...]:
        """The cells whose worst result is this one's; empty for a single attack."""
        cells = []
        for place, member in enumerate(self.attack.members):
            losses = self.objective.losses if member.losses is None else member.losses
            goal = dataclasses.replace(self.objective, losses=losses)
            attack = self.attack.of_member(member)
            change = {"attack": attack, "objective": goal, "place": place}
            cells.append(dataclasses.replace(self, **change).fitted())
        return tuple(cells)

    def fitted(self) -> Cell:
        """The cell, with settings reset that do not apply to its attack or tasks."""
        attack, goal = self.attack.fitted(self.eps), self.objective
        losses = tuple(
            loss
            for loss in goal.losses
            if any(_attack_loss(loss).fits(self.all_tasks[t]) for t in goal.tasks)
        )
        change: dict[str, Any] = {"losses": losses}
        draws_nothing = attack.kind.draws_nothing(attack.restarts)
        if draws_nothing or attack.kind.chooses_losses:
            change["losses"] = ()
        if draws_nothing and self.place < 0:  # The objective chooses nothing.
            change |= {"balance": "sum", "weights": (), "eot": 1}
        if len(goal.tasks) == 1:  # A scale of the only loss has no effect.
            change |= {"balance": "sum", "weights": ()}
        goal = dataclasses.replace(goal, **change)
        return dataclasses.replace(self, attack=attack, objective=goal)

    def judged(self, judge: str) -> Cell:
        """The cell judged by "harm" or "loss", with "auto" resolved to one of them."""
        judging.check(judge)
        goal = dataclasses.replace(self.objective, judge=self._judge(judge))
        return dataclasses.replace(self, objective=goal)

    def _judge(self, judge: str) -> str:
        """What the points are judged by, resolved as in attacks from Python."""
        is_ensemble = self.attack.kind.is_ensemble
        return judging.resolve(judge, any(self.objective.losses), is_ensemble)

    @property
    def passes(self) -> float:
        """The cost of an image, in passes forwards and backwards; scoring is one."""
        if not self.eps:
            return 1.0
        # A spared task needs its own backward pass.
        step_cost = self.objective.eot + (1 - kinds.FORWARD) * len(self.objective.spare)
        return 1.0 + step_cost * self.attack.passes(self.threat)

    def build(self) -> Callable[..., tf.Tensor]:
        """The attack `(objective, x, seed, *numbers) -> x_adv` of the whole family.

        It is made and checked here; the compiled step binds only the numbers.
        """
        if self._keeps_lengths:
            return self._build_fixed()
        attack = self.attack.make(self.threat.norm, 1.0, 1.0)  # Any lengths.
        if self.place < 0:
            return attack.at_lengths
        # This gives the same images as `attacks.Worst`.
        return functools.partial(ensemble.member_at_lengths, attack, self.place)

    def _build_fixed(self) -> Callable[..., tf.Tensor]:
        """Like `build`, but with a record that is made for the numbers of this cell."""
        if not self.eps:  # A record may refuse 0.
            return lambda objective, x, seed, *_: x
        fixed_attack = self.attack.make(self.threat.norm, *self.numbers)

        def attack(objective, x, seed, *_):
            is_member = self.place >= 0
            keys = ensemble.member_keys(seed, self.place) if is_member else seed
            return fixed_attack(objective, x, keys)

        return attack

    @property
    def _keeps_lengths(self) -> bool:
        """Whether a user's record holds values that it has derived from its lengths.

        `with_lengths` does not update them, so such a record serves one radius. Values
        that cannot be compared count, too. The cell's own lengths do not matter, so
        that all cells of a family agree.
        """
        if self.attack.kind.ours or self.members:
            return False
        numbers = (_ANY_LENGTH, _ANY_LENGTH)
        direct = self.attack.make(self.threat.norm, *numbers)
        rebound = self.attack.make(self.threat.norm, 1.0, 1.0).with_lengths(*numbers)
        direct_state, rebound_state = (
            getattr(a, "__dict__", a) for a in (direct, rebound)
        )
        try:
            return direct_state != rebound_state
        except (TypeError, ValueError):  # Raised by arrays.
            return True

    def check(self, image_shape: Sequence[int]) -> None:
        """Raises InputError if the attack or the objective cannot be made."""
        if self.threat.channels and self.attack.scale:
            raise InputError(
                f"--attack_channels does not work with --attack={self.attack.name}, "
                "which has no bound; give another attack, or leave it out."
            )
        for cell in self.members or (self,):
            if cell.eps:  # At 0 nothing is run, and no step is needed.
                cell.attack.make(cell.threat.norm, *cell.numbers)
        objectives.unbound(lambda x: {}, **self.objective_settings(*image_shape[:2]))

    def objective_settings(self, height: int, width: int) -> dict[str, Any]:
        """The arguments of `attacks.objective` besides model, targets and masks.

        Raises:
          InputError: The pixels are not all within `height` x `width`.
        """
        goal = self.objective
        return {
            "tasks": TaskSet(self.all_tasks[task] for task in goal.tasks),
            "balance": goal.balance,
            "pixels": self.pixel_mask(height, width),
            "weights": dict(goal.weights) or None,
            "losses": goal.losses,
            "targeted": goal.targeted,
            "classes": goal.classes or None,
            "judge": goal.judge,
            "eot": goal.eot,
            "spare": TaskSet(self.all_tasks[task] for task in goal.spare),
        }

    def pixel_mask(self, height: int, width: int) -> np.ndarray | None:
        """The attacked output pixels, 0/1 `[height, width]`; None for all.

        They are the same for all images and tasks; see `attacks.random_pixels`.
        """
        goal = self.objective
        if goal.pixels > height * width:
            raise InputError(
                f"--attack_pixels must be from 1 to {height * width}, the number of "
                f"pixels of a {height}x{width} output; got {goal.pixels}."
            )
        if goal.pixels:
            return attacks.random_pixels(height, width, goal.pixels, self.seed)
        if goal.block:
            rows, columns, *place = goal.block
            top, left = place or ((height - rows) // 2, (width - columns) // 2)
            if top < 0 or left < 0 or top + rows > height or left + columns > width:
                raise InputError(
                    f"--attack_block must lie inside {height}x{width} pixels, got "
                    f"{rows}x{columns} at row {top}, column {left}."
                )
            return attacks.block(height, width, top, left, rows, columns)
        return None

    @property
    def _may_compare_0(self) -> bool:
        """Whether losses are compared and one may be 0, unlike a whole class map's."""
        if attacks.BALANCES[self.objective.balance].weighted:
            return False
        class_tasks = [
            self.all_tasks[t] for t in self.tasks if self.all_tasks[t].discrete
        ]
        return any(self.objective.restricted or not t.is_map for t in class_tasks)

    @property
    def _lowers_the_largest(self) -> bool:
        """Whether points are judged by the loss that grew most, and it is lowered."""
        goal = self.objective
        by_largest = attacks.BALANCES[goal.balance].judges_by_largest
        return goal.targeted and by_largest and goal.judge == judging.LOSS

    @property
    def _normalizes_a_part(self) -> bool:
        """Whether gradients are divided by norms, but followed only in part."""
        normalizes = attacks.BALANCES[self.objective.balance].normalizes
        follows = normalizes and self.attack.kind.gradient
        return follows and (self.packed or bool(self.threat.channels))

    @property
    def _breaks_ties(self) -> bool:
        """Whether points of equal harm are ordered by another criterion."""
        goal, weights = self.objective, dict(self.objective.weights)
        if goal.judge != judging.HARM:
            return False
        tasks = {task: self.all_tasks[task] for task in goal.tasks}
        task_weights = [weights.get(task, 1.0) for task in goal.tasks]
        return bool(
            judging.may_tie(goal.judge, tasks, task_weights, goal.restricted, goal.eot)
        )

    def to_dict(self) -> dict[str, Any]:
        """All settings in one dict, which identifies finished cells."""
        flat = dataclasses.asdict(self.threat) | dataclasses.asdict(self.objective)
        flat |= dataclasses.asdict(self.attack)
        flat |= {"attack": flat.pop("name"), "attacked": flat.pop("tasks")}
        for name in ("channels", "spare"):  # As in cells of earlier versions.
            if not flat[name]:
                del flat[name]
        if self.objective.judge == judging.HARM and len(self.tasks) > 1:
            flat["joint_harm"] = _JOINT_HARM
        if self._lowers_the_largest:
            flat["losses_of_0"] = _TARGETED_OF_0
        elif self._may_compare_0:
            flat["losses_of_0"] = _LOSSES_OF_0
        if self._breaks_ties:
            flat["ties"] = _TIES
        if self._normalizes_a_part:
            flat["norms_of_movable"] = _NORMS_OF_MOVABLE
        kind = self.attack.kind
        if not kind.ours:
            flat["code"] = own_code.of(kind.load(), kind.fixed, kind.named)
        if self._keeps_lengths:
            flat["lengths"] = _LENGTHS
        return flat | {"seed": self.seed, "place": self.place}


def make_cells(
    config: AttackConfig,
    tasks: Tasks,
    classes: Sequence[str] = (),
    scale: tuple[tuple[float, ...], ...] = (),
    packed: bool = False,
) -> list[Cell]:
    """All combinations, without repetitions: by attack, objective, group, radius.

    Args:
      config: The settings.
      tasks: The tasks of the model: records, or names of the eleven.
      classes: The names of the data set's classes.
      scale: (mean, std) per colour of the model's standardisation; only unbounded
        attacks need it.
      packed: Whether further inputs are packed behind images.

    Raises:
      InputError: A task, loss, balance or class is unknown, or does not fit.
    """
    tasks = task_set(tasks)
    spare = spared(config.spare, tasks)
    cells, groups = [], parse_groups(config.attack_tasks, tasks, spare)
    weights, block = _weights(config, tasks), parse_block(config.attack_block)
    labels = {
        group: _class_labels(config.attack_classes, group, tasks, classes)
        for group in groups
    }
    for attack, loss, balance, group, eps in itertools.product(
        config.attack, config.attack_loss, config.balance, groups, sorted(config.eps)
    ):
        kind = KINDS[attack]
        cell = Cell(
            threat=Threat(norm=config.norm, eps=eps, channels=config.attack_channels),
            objective=ObjectiveSettings(
                tasks=group,
                losses=() if loss == OWN_LOSS else tuple(loss.split("+")),
                balance=balance,
                weights=tuple((t, number) for t, number in weights if t in group),
                targeted=config.targeted,
                pixels=config.attack_pixels,
                block=block,
                classes=labels[group],
                eot=config.eot,
                spare=spare,
            ),
            attack=AttackSettings.of(config, attack, scale),
            seed=config.seed,
            all_tasks=tasks,
            packed=packed,
        )
        cell = cell.fitted().judged(config.judge)
        checks.check_name("balance", balance, attacks.BALANCES)
        if config.targets == OWN_TARGETS and not config.targeted:
            for member in cell.members or (cell,):
                _check_compared(member)
        # Without its loss, which fits none of the tasks, this would be another attack.
        any_loss = loss == OWN_LOSS or kind.chooses_losses or kind.guesses
        discrete = any(tasks[task].discrete for task in group)
        if (cell.objective.losses or any_loss) and (discrete or not kind.needs_classes):
            cells.append(cell)
    _check_used(config, groups, tasks, weights)
    if not cells:
        raise InputError(
            f"--attack={','.join(config.attack)} with "
            f"--attack_loss={','.join(config.attack_loss)} fits none of the groups "
            f"{', '.join(map('+'.join, groups))}; sea needs a task with classes, and "
            "a loss needs a task of its kind."
        )
    return list(dict.fromkeys(cells))


def _check_used(
    config: AttackConfig,
    groups: Sequence[Sequence[str]],
    records: TaskSet,
    weights: Sequence[tuple[str, float]],
) -> None:
    """Raises `InputError` for a loss or a weight that no attack uses."""
    tasks = dict.fromkeys(task for group in groups for task in group)
    joint_tasks = {task for group in groups if len(group) > 1 for task in group}
    for task, weight in weights:
        flag = f"--attack_weights={','.join(config.attack_weights)}"
        if task not in tasks:
            raise InputError(
                f"{flag} names {task}, which is not attacked ({', '.join(tasks)} "
                "are); leave it out."
            )
        if weight <= 0 and task not in joint_tasks:
            raise InputError(
                f"{flag} gives {task} a weight that is not above 0, but {task} is "
                "attacked only by itself, where its loss is raised whatever its "
                "weight; attack it together with others (--attack_tasks=all), or leave "
                "it out."
            )
    losses = [loss for loss in config.attack_loss if loss != OWN_LOSS]
    for name in (part for loss in losses for part in loss.split("+")):
        if not any(_attack_loss(name).fits(records[task]) for task in tasks):
            raise InputError(
                f"--attack_loss={','.join(config.attack_loss)} names {name}, which "
                f"fits none of the attacked tasks ({', '.join(tasks)}); leave it out."
            )


def _attack_loss(name: str) -> Any:
    checks.check_name("loss", name, attacks.ATTACK_LOSSES)
    return attacks.ATTACK_LOSSES[name]


def _weights(config: AttackConfig, tasks: TaskSet) -> tuple[tuple[str, float], ...]:
    """Pairs (task, weight), with tasks by their full names."""
    weights = parse_weights(config.attack_weights)
    records = TASKS.replaced(*tasks.values())
    names = resolve([name for name, _ in weights], records.values()) if weights else ()
    return tuple(zip(names, (number for _, number in weights), strict=True))


def _class_labels(
    names: Sequence[str],
    group: Sequence[str],
    tasks: TaskSet,
    data_classes: Sequence[str],
) -> tuple[int, ...]:
    """The numbers of some classes in the tasks of a group.

    Args:
      names: Names of classes.
      group: The attacked tasks.
      tasks: The records of tasks.
      data_classes: The data set's classes, for tasks that do not name their own.

    Raises:
      InputError: A class is unknown, or tasks of the group differ in classes.
    """
    by_task = {
        t: tasks[t].classes or tuple(data_classes) for t in group if tasks[t].discrete
    }
    classes = next(iter(by_task.values()), tuple(data_classes))
    for name in names:
        if name not in classes:
            raise InputError(
                f"--attack_classes names {name!r}, but the classes of "
                f"{next(iter(by_task), 'the data set')} are "
                f"{', '.join(classes) or 'not known'}."
            )
    if names and len(set(by_task.values())) > 1:
        raise InputError(
            f"--attack_classes={','.join(names)} needs tasks with the same classes, "
            f"but those of {' and '.join(by_task)} differ; attack them one by one "
            "(--attack_tasks=each)."
        )
    return tuple(classes.index(name) for name in names)


def _check_compared(cell: Cell) -> None:
    """Raises `InputError` where losses are divided by losses that are 0.

    Losses on numbers are, because the targets are the model's own clean outputs.
    """
    kind, goal = cell.attack.kind, cell.objective
    reference = attacks.BALANCES[goal.balance].compared
    at_image = cell.attack.random_start is False and kind.starts != "elsewhere"
    # Only gradient attacks climb quotients; judging compares with the clean image.
    divides_by_clean = reference == "clean" or (reference == "start" and at_image)
    judges_by_loss = reference == "clean" and goal.judge == judging.LOSS
    number_tasks = [
        t for t in cell.tasks if cell.all_tasks[t].kind not in ("classes", "labels")
    ]
    if number_tasks and ((kind.gradient and divides_by_clean) or judges_by_loss):
        raise InputError(
            f"--balance={goal.balance} compares losses with those of the "
            f"{'clean image' if reference == 'clean' else 'start'}, and with "
            f"--targets=own that of {number_tasks[0]} is 0 there; choose another "
            "balance, such as dgba."
        )
