# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: every combination of attacks, radii and groups of tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attack_config import AttackConfig
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cell:
    """One attack. `eps` and `step_size` are in levels (linf) or plain norms (l2)."""

    attack: str
    norm: str
    eps: float
    step_size: float
    steps: int
    restarts: int
    attacked: tuple[str, ...]
    pixels: int
    seed: int

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

    def build(self) -> Callable[..., tf.Tensor]:
        """The attack `(objective, x, seed, *numbers) -> x_adv` of the whole family."""

        def attack(objective, x, seed, epsilon, step_size):
            make = attacks.ATTACKS[self.attack]
            made = make(epsilon, step_size, self.steps, self.norm, self.restarts)
            return made(objective, x, seed)

        return attack

    def pixel_mask(self, height: int, width: int) -> np.ndarray | None:
        """The attacked output pixels, 0/1 `[height, width]`; None for all.

        The same ones for every image and task, drawn without replacement.

        Raises:
          InputError: There are fewer pixels than asked for.
        """
        if not self.pixels:
            return None
        if self.pixels > height * width:
            raise InputError(
                f"--attack_pixels must be at most {height * width}, the pixels of a "
                f"{height}x{width} output; got {self.pixels}."
            )
        mask = np.zeros(height * width, np.float32)
        order = np.random.default_rng(self.seed).permutation(height * width)
        mask[order[: self.pixels]] = 1
        return mask.reshape(height, width)


def make_cells(config: AttackConfig, tasks: Sequence[str]) -> list[Cell]:
    """All combinations, without repetitions: by attack, then group, then radius."""
    cells = []
    for attack in config.attack:
        for group in parse_groups(config.attack_tasks, tasks):
            for eps in sorted(config.eps):
                step, steps, restarts = config.step_size, config.steps, config.restarts
                if attack == "fgsm":  # One step of eps from the image itself.
                    step, steps, restarts = eps, 1, 1
                cell = Cell(
                    attack,
                    config.norm,
                    eps,
                    step or eps / 4,
                    steps,
                    restarts,
                    group,
                    config.attack_pixels,
                    config.seed,
                )
                cells.append(cell)
    return list(dict.fromkeys(cells))


def parse_groups(
    groups: Sequence[str], tasks: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Reads --attack_tasks: task names joined by `+`, `each` and `all`.

    Args:
      groups: Such as ("seg+depth", "each").
      tasks: The model's. Tasks inside a group come out in this order.

    Raises:
      InputError: A task is unknown, or the model lacks it.
    """
    found = []
    for text in groups:
        if text.lower() == "each":
            found += [(task,) for task in tasks]
        elif text.lower() == "all":
            found.append(tuple(tasks))
        else:
            named = tasks_lib.resolve(text.split("+"))
            check_has(named, tasks, "--attack_tasks")
            found.append(tuple(task for task in tasks if task in named))
    return tuple(dict.fromkeys(found))


def check_has(asked: Sequence[str], tasks: Sequence[str], flag: str) -> None:
    """Raises `InputError` with both lists where the model lacks a task."""
    missing = [task for task in asked if task not in tasks]
    if missing:
        raise InputError(
            f"{flag} asks for {', '.join(missing)}, but the checkpoint has only the "
            f"tasks {', '.join(tasks)}; name some of these."
        )
