# SPDX-License-Identifier: Apache-2.0
"""Measures of one model on a data set: what `--measure` computes and writes.

FOLDER/measures.json, .csv     the records, see `records`
       measure_*.png           plots
       measures/               finished parts, so that none is done twice; what the
                               records depend on; TensorBoard

A part is one pass (or one per draw) over all images. Its arrays, a row per image, are
kept; records and plots are made anew from them, which takes no time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import attacks
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError
from mtr_tf.evaluation.provenance import Provenance
from mtr_tf.evaluation.sweep import Subject
from mtr_tf.measures import corruption_records
from mtr_tf.measures import corruptions
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.measures import pixel_records
from mtr_tf.measures import records as measure_records
from mtr_tf.measures import steps as steps_lib
from mtr_tf.measures.passes import Arrays
from mtr_tf.measures.passes import Part
from mtr_tf.measures.passes import Parts
from mtr_tf.measures.passes import Pass
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import groups

_Masks = Mapping[int, Sequence[np.ndarray]]  # By number of pixels, one per draw.


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What is measured.

    Attributes:
      measures: Out of `config.attack.MEASURES`.
      groups: Groups of tasks whose mean loss `first_order` attacks.
      norm: Of the ball of `first_order`, "linf" or "l2".
      eps: Its radii, in levels (linf) or plain norms (l2), above 0.
      steps: Of PGD there; the step is a quarter of the radius, or what is needed to
        reach it.
      draws: Sets of output pixels of each size.
      pixel_attack: (eps, step size, steps) of PGD on output pixels, linf, in levels.
      channels: Of the images, those that gradients and attacks are about; empty: all.
    """

    measures: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    norm: str = "linf"
    eps: tuple[float, ...] = (1 / 16, 1 / 4, 1, 2, 4, 8)
    steps: int = 20
    draws: int = 4
    pixel_attack: tuple[float, float, int] = (8.0, 2.0, 5)
    channels: tuple[int, ...] = ()

    @property
    def of_channels(self) -> dict[str, Any]:
        """What parts and records say of the channels; nothing where they are all."""
        return {"attack_channels": list(self.channels)} if self.channels else {}


def settings_of(
    config: AttackConfig, tasks: Sequence[str] | TaskSet
) -> MeasureSettings:
    """What flags ask for; two radii below theirs show the limit of the first order.

    Raises:
      InputError: `tasks` is to be measured of too many tasks, or the groups or the
        spared tasks are not as `parse_groups` takes them.
    """
    spare = groups.spared(config.spare, tasks)
    if "tasks" in config.measure:
        gradients_lib.check_count(len(tuple(tasks)))
    eps = {radius for radius in config.eps if radius}
    if eps:
        eps |= {min(eps) / 16, min(eps) / 4}
    return MeasureSettings(
        measures=tuple(dict.fromkeys(config.measure)),
        groups=groups.parse_groups(config.attack_tasks, tasks, spare),
        norm=config.norm,
        eps=tuple(sorted(eps)),
        steps=config.steps,
        draws=config.measure_draws,
        channels=config.attack_channels,
    )


def check_own_targets(settings: MeasureSettings, tasks: TaskSet) -> None:
    """Raises `InputError` for gradients of losses that are at their least.

    As those of numbers are, whose targets are the model's own clean outputs.
    """
    maps = [task.name for task in tasks.values() if task.is_map]
    in_groups = [name for group in settings.groups for name in group]
    measured = {"tasks": tasks, "pixels": maps, "blocks": maps}
    measured |= {"first_order": in_groups}
    for name in settings.measures:
        for task in measured.get(name, ()):
            if tasks[task].kind not in ("classes", "labels"):
                raise InputError(
                    f"--measure={name} is about gradients of losses at the clean "
                    "images, and with --targets=own those of tasks that are neither "
                    f"classes nor labels are nothing but rounding there, as of {task}; "
                    "leave out --targets=own, or choose other tasks."
                )


def measure(
    subject: Subject,
    settings: MeasureSettings,
    provenance: Provenance,
    warnings: list[str],
    folder: pathlib.Path,
) -> list[dict[str, Any]]:
    """Measures what is not finished yet; returns one record per number.

    Args:
      subject: The model, the images and how to go through them.
      settings: What is measured.
      provenance: All that arrays depend on beside that.
      warnings: What every record says of the model, as sentences.
      folder: Where finished parts are kept, in `measures/`.
    """
    about = settings.of_channels
    facts = provenance.to_dict() | about
    parts = Parts(folder / "measures", facts, subject.workers)
    job = _Measuring(subject, settings, parts)
    records = []
    for name in settings.measures:
        records += _MEASURES[name](job)
    repeated = {"n": subject.num_examples, **provenance.of_measures(warnings)}
    return [record | repeated | about for record in records]


# The measures.


class _Measuring:
    """What the measures of a call share: passes that two of them need are made once."""

    def __init__(self, subject: Subject, settings: MeasureSettings, parts: Parts):
        """Takes what is measured, how, and what is finished."""
        self.subject = subject
        self.settings = settings
        self._parts = parts
        self._passes: dict[str, Pass] = {}

    @property
    def channels(self) -> tuple[int, ...]:
        """Those of the images that gradients and attacks are about; empty: all."""
        return self.subject.attacked_channels(self.settings.channels)

    def one(
        self, name: str, step: Callable[..., dict[str, tf.Tensor]], cost: float
    ) -> Pass:
        """The pass of that name; of `step` if it is new, and of that cost."""
        return self._passes.setdefault(name, Pass(self.subject, step, cost))

    def finish(self, parts: Sequence[Part], what: str) -> list[Arrays]:
        """The arrays of the parts; see `Parts.finish`."""
        return self._parts.finish(parts, self.subject.num_examples, what)

    def of_masks(
        self,
        masks: _Masks,
        about: Mapping[str, Any],
        step: tuple[str, Callable[..., dict[str, tf.Tensor]], int],
        collect: Callable[[list[Arrays]], Arrays],
        what: str,
    ) -> dict[int, Arrays]:
        """What a step finds with each number of output pixels.

        Args:
          masks: Of the pixels; each is given to the step.
          about: What the parts are called, beside their numbers of pixels and draws.
          step: Its name, itself, and how many passes of the model one draw costs.
          collect: Makes one set of arrays of those of all draws of a number.
          what: What progress says of it.
        """
        name, function, passes = step
        one = self.one(name, function, passes * sum(map(len, masks.values())))

        def make(pixels: Sequence[np.ndarray], advance: Callable) -> Arrays:
            return collect([one(advance, tf.constant(mask)) for mask in pixels])

        parts = [
            Part(
                {**about, "pixels": count, "draws": len(pixels)},
                passes,
                functools.partial(make, pixels),
                len(pixels),
            )
            for count, pixels in masks.items()
        ]
        return dict(zip(masks, self.finish(parts, what), strict=True))


def _tasks(job: _Measuring) -> list[dict]:
    """How tasks share a perturbation: norms of mean gradients over all sets."""
    subject, tasks = job.subject, job.subject.tasks
    channels = job.channels
    cost = 1 + len(tasks)
    gradients = Pass(subject, steps_lib.gradients(subject.model, tasks, channels), cost)
    part = Part({"part": "gradients", "tasks": list(tasks)}, cost, gradients)
    (arrays,) = job.finish([part], "measuring tasks (l2)")
    norms = measure_records.own_norms(arrays, "l1")
    divisors = np.nan_to_num(gradients_lib.root_mean_square(norms))
    sums = Pass(subject, steps_lib.l1_of_sets(subject.model, tasks, channels), cost)
    part = Part(
        {"part": "l1 of all sets", "tasks": list(tasks)},
        cost,
        lambda advance: sums(advance, tf.constant(divisors)),
    )
    (l1,) = job.finish([part], "measuring tasks (l1)")
    return measure_records.of_tasks(
        arrays, l1, tuple(tasks), subject.seed, subject.units
    )


def _some_pixels(measure: str, job: _Measuring) -> list[dict]:
    """Gradient norms of, and attacks on, the mean loss over some output pixels."""
    maps = TaskSet(task for task in job.subject.tasks.values() if task.is_map)
    skipped = [task for task in job.subject.tasks if task not in maps]
    if skipped:
        logging.warning(
            "--measure=%s is about output pixels; %s is left out, because it has no "
            "value for each pixel",
            measure,
            ", ".join(skipped),
        )
    if not maps:
        return []
    height, width = job.subject.columns.images.shape[1:3]
    sets = random_sets if measure == "pixels" else block_sets
    masks = sets(height, width, job.settings.draws, job.subject.seed)
    records = _pixel_gradients(measure, masks, job, maps)
    for task in maps.values():
        records += _pixel_attack(measure, masks, job, task)
    return records


def _pixel_gradients(
    measure: str, masks: _Masks, job: _Measuring, tasks: TaskSet
) -> list[dict]:
    subject = job.subject
    step = steps_lib.gradients(subject.model, tasks, job.channels)

    def collect(draws: list[Arrays]) -> Arrays:
        return {
            norm: np.stack([measure_records.own_norms(m, norm) for m in draws])
            for norm in measure_records.NORMS
        }

    by_count = job.of_masks(
        masks,
        {"part": f"gradients of {measure}"},
        ("gradients", step, 1 + len(tasks)),
        collect,
        f"measuring {measure}",
    )
    return pixel_records.of_pixel_gradients(
        measure, by_count, tuple(tasks), subject.seed, subject.units
    )


def _pixel_attack(
    measure: str, masks: _Masks, job: _Measuring, task: Task
) -> list[dict]:
    eps, step_size, steps = job.settings.pixel_attack
    pgd = attacks.PGD(eps / 255, step_size / 255, steps, random_start=False)
    attack = attacks.on_channels(pgd, job.channels)
    step = steps_lib.pixel_attack(job.subject, task.name, attack)
    about = {"part": f"attack on {measure}", "task": task.name}
    by_count = job.of_masks(
        masks,
        about | {"pgd": job.settings.pixel_attack},
        (f"attack on {task.name}", step, steps + 3),
        lambda draws: {name: np.stack([m[name] for m in draws]) for name in draws[0]},
        f"attacking {measure} of {task.name}",
    )
    return pixel_records.of_pixel_attacks(
        measure, task, by_count, eps, job.subject.seed, job.subject.units
    )


def _first_order(job: _Measuring) -> list[dict]:
    """What PGD reaches beside eps times the dual norm of the gradient."""
    return [
        record
        for group in job.settings.groups
        for record in _first_order_of(group, job)
    ]


def _first_order_of(group: Sequence[str], job: _Measuring) -> list[dict]:
    subject, settings = job.subject, job.settings
    unit = 1 / 255 if settings.norm == "linf" else 1.0
    one = Pass(
        subject,
        steps_lib.first_order(
            subject, group, settings.norm, settings.steps, job.channels
        ),
        (settings.steps + 4) * len(settings.eps),
    )

    def make(eps, advance):
        arrays = one(advance, tf.constant(eps * unit, tf.float64))
        valid = arrays.pop("valid").all(axis=1)
        return {name: np.where(valid, array, np.nan) for name, array in arrays.items()}

    name = "+".join(group)
    about = {"part": "first order", "tasks": name}
    about |= {"norm": settings.norm, "steps": settings.steps}
    todo = [
        Part({**about, "eps": eps}, settings.steps + 4, functools.partial(make, eps))
        for eps in settings.eps
    ]
    shown = name if len(group) < 4 else f"{len(group)} tasks"
    arrays = job.finish(todo, f"first order of {shown}")
    by_eps = dict(zip(settings.eps, arrays, strict=True))
    return measure_records.of_first_order(
        group, settings.norm, unit, by_eps, subject.seed, subject.units
    )


def _corruptions(job: _Measuring) -> list[dict]:
    """Metrics on images that are corrupted in common ways, and on clean ones."""
    todo = {("", 0): _corrupted(job, "", 0.0)}
    for name, strengths in corruptions.SEVERITIES.items():
        for severity, strength in enumerate(strengths, 1):
            todo[name, severity] = _corrupted(job, name, strength)
    arrays = job.finish(list(todo.values()), "measuring corruptions")
    found = dict(zip(todo, arrays, strict=True))
    subject = job.subject
    return corruption_records.of_corruptions(
        subject.tasks, found, subject.seed, subject.units, subject.info.units
    )


def _corrupted(job: _Measuring, name: str, strength: float) -> Part:
    """Rows of metrics under a corruption; one graph serves all its strengths."""
    step = steps_lib.corrupted(job.subject, name, job.channels)
    one = job.one(f"corruption {name}", step, cost=0)
    about: dict[str, Any] = {"part": "corruption", "tasks": list(job.subject.tasks)}
    about |= {"name": name, "strength": strength}
    more = {
        task.name: [m.name for m in task.more] for task in job.subject.tasks.values()
    }
    if any(more.values()):  # Parts of before have no others.
        about["metrics"] = more
    return Part(about, 0.5, lambda advance: one(advance, tf.constant(strength)))


_MEASURES = {
    "corruptions": _corruptions,
    "tasks": _tasks,
    "pixels": functools.partial(_some_pixels, "pixels"),
    "blocks": functools.partial(_some_pixels, "blocks"),
    "first_order": _first_order,
}


# Sets of output pixels: random ones, and blocks.


def random_sets(
    height: int, width: int, draws: int, seed: int
) -> dict[int, list[np.ndarray]]:
    """{count: masks 0/1 `[height, width]`} of 1, 4, 16, ... random pixels, and all.

    A draw's smaller sets are inside its larger ones. Of all pixels there is one set.
    """
    return {
        count: [
            attacks.random_pixels(height, width, count, draw_seed(seed, draw))
            for draw in range(draws if count < height * width else 1)
        ]
        for count in _random_counts(height, width)
    }


def block_sets(
    height: int, width: int, draws: int, seed: int
) -> dict[int, list[np.ndarray]]:
    """As `random_sets`, of square blocks of side 1, 2, 4, ..., and all pixels."""
    *counts, pixels = _block_counts(height, width)
    masks = {}
    for side in map(math.isqrt, counts):
        masks[side**2] = []
        for draw in range(draws):
            random = np.random.default_rng(draw_seed(seed, draw))
            top, left = (int(random.random() * (s - side + 1)) for s in (height, width))
            mask = attacks.block(height, width, top, left, side, side)
            masks[side**2].append(mask)
    masks[pixels] = [np.ones((height, width), np.float32)]
    return masks


def _random_counts(height: int, width: int) -> list[int]:
    pixels = height * width
    return [*(4**power for power in range(math.ceil(math.log(pixels, 4)))), pixels]


def _block_counts(height: int, width: int) -> list[int]:
    powers = range(math.ceil(math.log2(min(height, width))))
    return [*(4**power for power in powers), height * width]


# By measure: (height, width) -> the numbers of pixels of its sets.
COUNTS = {"pixels": _random_counts, "blocks": _block_counts}


def draw_seed(seed: int, draw: int) -> int:
    """A seed of its own for each draw; draws of different seeds have none in common."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
