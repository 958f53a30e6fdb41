# SPDX-License-Identifier: Apache-2.0
"""What cells cost, and how much time is left, estimated from those that are done.

The unit of cost is one forward and backward pass of one image of 64 x 64 pixels through
an encoder and one head. Costs need not be exact: they serve to compare cells of one
kind, and the time per unit is learned while the study runs.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping
from collections.abc import Sequence

from mtr_tf.attacks.kinds import FORWARD
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.errors import present
from mtr_tf.evaluation.plan import AttackSettings
from mtr_tf.evaluation.plan import Threat
from mtr_tf.study.commands import Cell

_TRAINING = 2.5  # Cost of a training step in passes: weights' gradients, data.
_START = 10.0  # Seconds of each process before the first pass: imports, compiling.
_EXAMPLES = 2000  # Assumed size of a split whose size is not known here.
_PIXEL_SIZES = 7  # Numbers of pixels that are measured: 1, 4, 16, ... and all.


def of_training(config: TrainConfig) -> float:
    """The cost of a training run."""
    images = config.epochs * (config.train_examples or _EXAMPLES)
    attack_passes = config.adversarial_steps if config.adversarial_tasks else 0
    passes = _TRAINING + attack_passes
    return images * passes * _size(config.image_size, len(config.tasks))


def of_attack(config: AttackConfig, run: TrainConfig) -> float:
    """The cost of an attack on a run."""
    images = config.num_examples or _EXAMPLES
    count = len(config.tasks or run.tasks)
    groups, radii = _groups(config, count), _radii(config)
    passes = sum(
        _MEASURE[name](config, count, groups, radii) for name in config.measure
    )
    passes += passes_of(config, count)
    passes = max(passes, FORWARD)  # Without attacks, or if all radii are 0.
    return images * passes * _size(config.image_size or run.image_size, count)


def of_cells(cells: Sequence[Cell]) -> dict[str, float]:
    """The costs of cells by folder."""
    train_configs = {
        c.folder: c.config for c in cells if isinstance(c.config, TrainConfig)
    }
    return {
        cell.folder: of_attack(cell.config, train_configs[cell.needs[0]])
        if isinstance(cell.config, AttackConfig)
        else of_training(train_configs[cell.folder])
        for cell in cells
    }


def passes_of(config: AttackConfig, tasks: int) -> float:
    """Passes per image of all attacks of a command.

    Args:
      config: The command's settings.
      tasks: Number of the model's tasks that are looked at.
    """
    if config.attack == NO_ATTACK or not any(config.eps):
        return 0.0
    passes = config.eot + (1 - FORWARD) * len(config.spare)
    per_cell = sum(passes * _passes(name, config) + FORWARD for name in config.attack)
    groups, radii = _groups(config, tasks - len(config.spare)), _radii(config)
    return groups * radii * len(config.attack_loss) * len(config.balance) * per_cell


def _groups(config: AttackConfig, tasks: int) -> int:
    return sum(tasks if text == "each" else 1 for text in config.attack_tasks)


def _radii(config: AttackConfig) -> int:
    return sum(eps > 0 for eps in config.eps)


def _passes(attack: str, config: AttackConfig) -> float:
    """Passes per image of one attack at the largest radius."""
    threat = Threat(norm=config.norm, eps=max(config.eps))
    settings = AttackSettings.of(config, attack, scale=((0.5,) * 3, (0.5,) * 3))
    try:
        return settings.fitted(threat.eps).passes(threat)
    except InputError:
        return 1.0  # This command will be refused when it runs; others go on.


def _of_pixels(config: AttackConfig, tasks: int, groups: int, radii: int) -> float:
    return config.measure_draws * _PIXEL_SIZES * (1 + 9 * tasks)


# Passes per image of each measure: see docs/measures.md.
_MEASURE = {
    "corruptions": lambda config, tasks, groups, radii: 41 * FORWARD,
    "tasks": lambda config, tasks, groups, radii: 2 * (1 + tasks),
    "pixels": _of_pixels,
    "blocks": _of_pixels,
    "first_order": lambda config, tasks, groups, radii: (
        groups * radii * (config.steps + 4)
    ),
}


def _size(image_size: str, tasks: int) -> float:
    height, width = parse_image_size(image_size) or (64, 64)
    return height * width / 64**2 * (1 + tasks) / 2


def in_words(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 1 h 30 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Clock:
    """Estimates how long cells will take from how long others took.

    Attributes:
      costs: Costs by the cells' folders.
    """

    def __init__(self, costs: Mapping[str, float]):
        """Starts without any times."""
        self.costs = costs
        self._rates: dict[tuple, list[float]] = {}  # Sorted, by `_similarity_keys`.

    def add(self, cell: Cell, seconds: float) -> None:
        """Learns from the time of a cell that was done from beginning to end."""
        rate = max(seconds - _START, 0.1 * seconds) / self.costs[cell.folder]
        for key in _similarity_keys(cell):
            bisect.insort(self._rates.setdefault(key, []), rate)

    def seconds(self, cell: Cell) -> float | None:
        """How long a cell will take; None while no time is known.

        It is estimated by the median time per cost of the most similar cells, because
        a single one may have been held up.
        """
        for key in _similarity_keys(cell):
            if rates := self._rates.get(key):
                return _START + statistics.median(rates) * self.costs[cell.folder]
        return None

    def left(
        self,
        waiting: Sequence[Cell],
        running: Sequence[tuple[Cell, float]],
        workers: int,
    ) -> float | None:
        """Seconds until all is done if no worker ever waits; None if not known.

        Args:
          waiting: The cells to come.
          running: The cells that run, each with the seconds since its start.
          workers: Number of cells that run at a time.
        """
        if not self._rates:
            return None
        times_left = []
        for cell, elapsed in [*((cell, 0.0) for cell in waiting), *running]:
            duration = present(self.seconds(cell), "a cell that is done")
            times_left.append(max(duration - elapsed, 0.1 * duration))
        return max(sum(times_left) / workers, max(times_left, default=0.0))


def _similarity_keys(cell: Cell) -> tuple[tuple, ...]:
    """Keys that similar cells share with this one, the most similar first.

    They stand for: the same variant and attack (or training), with other seeds; the
    same attack (or training) with other variants; the same kind; any cell.
    """
    attack_key = (cell.kind, cell.attack)
    return ((*attack_key, cell.variant), attack_key, (cell.kind,), ())
