# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: every combination of attacks, objectives, radii and groups."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import attack_losses
from mtr_tf.attacks import checks
from mtr_tf.attacks import ensemble
from mtr_tf.attacks import judging
from mtr_tf.config.attack import OWN_LOSS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.attack import parse_block
from mtr_tf.config.attack import parse_weights
from mtr_tf.errors import InputError
from mtr_tf.tasks.groups import parse_groups

_FLOORS = ("noise", "corner")
_ENSEMBLES = ("sea", "worst")
# By name what the released code does wrong: (where it starts, its scale).
_RELEASED = {
    "pgd_released": ("corner", "wrong"),
    "pgd_released_start": ("corner", "pixels"),
    "pgd_released_scale": ("image", "wrong"),
}
# Those that leave the ball of radius eps, as the released code does.
OUTSIDE = tuple(name for name, (_, scale) in _RELEASED.items() if scale == "wrong")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One attack. `eps` and `step_size` are in levels (linf) or plain norms (l2).

    `steps` are queries of square; `step_size` is 0 where the attack has its own, and
    `restarts` are draws of noise. `losses` are names of `attacks.SURROGATES`, `weights`
    pairs (task, number), `block` is (rows, columns[, top, left]), `classes` are labels,
    `radii` the stages of apgd; `ensemble` and `queries` are those of worst, whose
    `random_start` may be None: each member's own. `scale` is the model's (mean, std),
    for the released code's wrong scale. `judge` is "harm" or "loss"; `place` is that
    among the members of an ensemble, which the random numbers depend on, -1 for none.
    """

    attack: str
    norm: str
    eps: float
    step_size: float
    steps: int
    restarts: int
    attacked: tuple[str, ...]
    pixels: int
    seed: int
    losses: tuple[str, ...] = ()
    balance: str = "sum"
    weights: tuple[tuple[str, float], ...] = ()
    targeted: bool = False
    random_start: bool | None = True
    block: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    radii: tuple[tuple[float, float], ...] = ()
    ensemble: tuple[str, ...] = ()
    queries: int = 0
    scale: tuple[tuple[float, ...], ...] = ()
    judge: str = judging.LOSS
    place: int = -1
    eot: int = 1  # Draws of a random model's noise.

    @property
    def numbers(self) -> tuple[float, float]:
        """(epsilon, step size) as the attacks take them: of images in [0, 1]."""
        unit = 255 if self.norm == "linf" else 1
        return self.eps / unit, self.step_size / unit

    @property
    def family(self) -> Cell:
        """What it shares with the cells that differ in `numbers` alone."""
        return dataclasses.replace(self, eps=0.0, step_size=0.0)

    @property
    def group(self) -> str:
        """The attacked tasks as one word."""
        return "+".join(self.attacked)

    @property
    def label(self) -> str:
        """The attack with what is not as usual about its objective, as one word."""
        parts = [self.attack, "+".join(self.losses)]
        parts += [self.balance] if self.balance != "sum" else []
        parts += ["targeted" * self.targeted, f"eot{self.eot}" * (self.eot > 1)]
        parts += [self.judge if self.judge != _judge(self, judging.AUTO) else ""]
        return "-".join(part for part in parts if part)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said wherever its results are, as sentences."""
        if not self.scale or not self.eps:
            return ()
        # How far a value goes at most, by the formulas in `attacks.released`: by r, or
        # from 0 to the lower end of the box.
        reach = max(
            max(2 * self.eps * std, 255 * (mean - std))
            for mean, std in zip(*self.scale, strict=True)
        )
        return (
            f"{self.attack} is not bound by eps, as the released code is not: at eps "
            f"{self.eps:g} values move by up to {reach:.3g} levels; it is no measure "
            "of robustness.",
        )

    @property
    def members(self) -> tuple[Cell, ...]:
        """The cells that this one takes the worst of; empty for a plain attack."""
        changes = [{"attack": name, "ensemble": ()} for name in self.ensemble]
        if self.attack == "sea":
            run = {"attack": "apgd", "radii": ensemble.SEA_RADII}
            changes = [{**run, "losses": (loss,)} for loss in ensemble.SEA_LOSSES]
        return tuple(
            _fitted(dataclasses.replace(self, **change, place=n))
            for n, change in enumerate(changes)
        )

    def build(self) -> Callable[..., tf.Tensor]:
        """The attack `(objective, x, seed, *numbers) -> x_adv` of the whole family."""

        def attack(objective, x, seed, epsilon, step_size):
            if self.place >= 0:  # The same images as of `attacks.Worst`.
                seed = ensemble.member_keys(seed, self.place)
            return self._attack(epsilon, step_size)(objective, x, seed)

        return attack

    def _attack(self, epsilon, step_size) -> attacks.Attack:
        if self.attack in _RELEASED:
            return self._released(epsilon, step_size)
        settings = {
            "step_size": step_size,
            "steps": self.steps,
            "norm": self.norm,
            "restarts": self.restarts,
            "random_start": self.random_start,
        }
        if self.radii:
            settings["radii"] = self.radii
        return attacks.make(self.attack, epsilon, **settings)

    def _released(self, epsilon, step_size) -> attacks.Attack:
        """The one use of the released code's mistakes: when their name is given."""
        from mtr_tf.attacks import released

        if self.norm != "linf":
            raise InputError(f"--attack={self.attack} needs --norm=linf, got l2.")
        start, scale = _RELEASED[self.attack]
        mean, std = self.scale or (None, None)
        settings = {"start": start, "scale": scale, "mean": mean, "std": std}
        return released.ReleasedPGD(epsilon, step_size, self.steps, **settings)

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Raises InputError where its attack or its objective cannot be made."""
        for cell in self.members or (self,):
            if cell.eps:  # Else nothing is run, and no step is fine.
                cell._attack(*cell.numbers)
        height, width, _ = image_shape
        targets, masks = {}, {}
        for name in self.attacked:
            task = tasks_lib.TASKS[name]
            channels = task.output_channels(num_classes)
            shape = (1, height, width) + (() if task.discrete else (channels,))
            targets[name] = np.zeros(shape, np.int32 if task.discrete else np.float32)
            masks[name] = np.ones((1, height, width), np.float32)
        settings = self.objective_settings(height, width)
        attacks.objective(lambda x: {}, targets, masks, **settings)

    def objective_settings(self, height: int, width: int) -> dict[str, Any]:
        """What `attacks.objective` takes beside model, targets and masks.

        Raises:
          InputError: The pixels are not all within `height` x `width`.
        """
        return {
            "tasks": self.attacked,
            "balance": self.balance,
            "pixels": self.pixel_mask(height, width),
            "weights": dict(self.weights) or None,
            "losses": self.losses,
            "targeted": self.targeted,
            "classes": self.classes or None,
            "judge": self.judge,
            "eot": self.eot,
        }

    def pixel_mask(self, height: int, width: int) -> np.ndarray | None:
        """The attacked output pixels, 0/1 `[height, width]`; None for all.

        The same ones for every image and task; see `attacks.random_pixels`.
        """
        if self.pixels:
            return attacks.random_pixels(height, width, self.pixels, self.seed)
        if self.block:
            rows, columns, *place = self.block
            top, left = place or ((height - rows) // 2, (width - columns) // 2)
            return attacks.block(height, width, top, left, rows, columns)
        return None


def make_cells(
    config: AttackConfig,
    tasks: Sequence[str],
    classes: Sequence[str] = (),
    scale: tuple[tuple[float, ...], ...] = (),
) -> list[Cell]:
    """All combinations, without repetitions: by attack, objective, group, radius.

    Args:
      config: The settings.
      tasks: The model's.
      classes: The names of the data set's classes.
      scale: (mean, std) per colour of the model's standardisation; for the attacks
        in OUTSIDE alone, which need it.

    Raises:
      InputError: A task, loss, balance or class is unknown, or does not fit.
    """
    cells, groups = [], parse_groups(config.attack_tasks, tasks)
    weights, block = _weights(config), parse_block(config.attack_block)
    labels = tuple(_class_label(name, classes) for name in config.attack_classes)
    for attack, loss, balance, group, eps in itertools.product(
        config.attack, config.attack_loss, config.balance, groups, sorted(config.eps)
    ):
        cell = Cell(
            attack,
            config.norm,
            eps,
            config.step_size,
            config.steps,
            config.restarts,
            group,
            config.attack_pixels,
            config.seed,
            () if loss == OWN_LOSS else tuple(loss.split("+")),
            balance,
            tuple((task, number) for task, number in weights if task in group),
            config.targeted,
            config.random_start,
            block,
            labels,
            ensemble=config.ensemble,
            queries=config.queries,
            scale=scale if attack in OUTSIDE else (),
            eot=config.eot,
        )
        cell = _fitted(cell)
        cell = dataclasses.replace(cell, judge=_judge(cell, config.judge))
        checks.check_name("balance", balance, attacks.BALANCES)
        blind = attack in ("sea", *_FLOORS)
        if (cell.losses or loss == OWN_LOSS or blind) and _possible(cell):
            cells.append(cell)
    if not cells:
        raise InputError(
            f"--attack={','.join(config.attack)} with "
            f"--attack_loss={','.join(config.attack_loss)} fits none of the groups "
            f"{', '.join(map('+'.join, groups))}; sea needs a task with classes, and a "
            "loss a task of its kind."
        )
    return list(dict.fromkeys(cells))


def _fitted(cell: Cell) -> Cell:
    """The cell with only what applies to its attack and its tasks."""
    change: dict[str, Any] = {}
    if cell.attack != "worst":
        change |= {"ensemble": (), "queries": 0}
    if cell.attack != "worst" and cell.random_start is None:  # One mim: Dong et al.'s.
        change |= {"random_start": cell.attack != "mim" or cell.restarts > 1}
    if cell.attack in ("fgsm", *_RELEASED):
        change |= {"restarts": 1, "random_start": False}
    if cell.attack == "fgsm":  # One step of eps from the image itself.
        change |= {"steps": 1, "step_size": cell.eps}
    elif cell.attack in ("pgd", "mim", "mim_released", *_RELEASED):
        change |= {"step_size": cell.step_size or cell.eps / 4}
    elif cell.attack == "square":
        change |= {"step_size": 0.0, "steps": cell.queries, "restarts": 1}
    elif cell.attack in _FLOORS:
        change |= {"step_size": 0.0, "steps": 1}
        if _is_blind(cell) and cell.place < 0:  # Nothing to choose by the objective.
            change |= {"balance": "sum", "weights": (), "eot": 1}
    elif cell.attack in ("apgd", "sea"):
        change |= {"step_size": 0.0}
    fits = [
        loss
        for loss in cell.losses
        if any(_surrogate(loss).fits(tasks_lib.TASKS[t]) for t in cell.attacked)
    ]
    blind = cell.attack == "sea" or _is_blind(cell)
    cell = dataclasses.replace(cell, **change, losses=() if blind else tuple(fits))
    if len(cell.attacked) == 1:  # All balances climb the one loss there is.
        cell = dataclasses.replace(cell, balance="sum", weights=())
    return cell


def _judge(cell: Cell, judge: str) -> str:
    """What its points are judged by, as attacks in Python resolve it."""
    return judging.resolve(judge, any(cell.losses), cell.attack in _ENSEMBLES)


def _surrogate(name: str) -> attack_losses.Surrogate:
    checks.check_name("loss", name, attacks.SURROGATES)
    return attacks.SURROGATES[name]


def _is_blind(cell: Cell) -> bool:
    """Whether it does not look at the objective at all."""
    return cell.attack in _FLOORS and cell.restarts == 1


def _possible(cell: Cell) -> bool:
    """Whether there is such an attack on these tasks."""
    discrete = any(tasks_lib.TASKS[task].discrete for task in cell.attacked)
    return discrete or cell.attack != "sea"


def _weights(config: AttackConfig) -> tuple[tuple[str, float], ...]:
    """Pairs of a task and its weight, each task by its one name."""
    weights = parse_weights(config.attack_weights)
    named = tasks_lib.resolve([name for name, _ in weights]) if weights else ()
    return tuple(zip(named, (number for _, number in weights), strict=True))


def _class_label(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise InputError(
            f"--attack_classes names {name!r}, and the data set's classes are "
            f"{', '.join(classes) or 'not known'}."
        )
    return list(classes).index(name)
