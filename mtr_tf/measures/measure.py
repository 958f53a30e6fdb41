# SPDX-License-Identifier: Apache-2.0
"""Measures of one model on a data set: what `--measure` computes and writes.

FOLDER/measures.json, .csv     the records, see `records`
       measure_*.png           plots
       measures/               finished parts, which are not run again, with what they
                               depend on; TensorBoard

A part is one pass (or one per draw) over all images. Its arrays, with a row per image,
are kept; each run makes records and plots from them, which takes no time.
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
from mtr_tf.measures import corruptions
from mtr_tf.measures import gradients as gradients_lib
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
    """Which measures to take, and their settings.

    Attributes:
      measures: Names from `config.attack.MEASURES`.
      groups: Groups of tasks whose mean loss `first_order` attacks.
      norm: That of the ball of `first_order`, "linf" or "l2".
      eps: Its radii, in levels (linf) or plain norms (l2), above 0.
      steps: Those of its PGD; a step is a quarter of the radius, or more if needed to
        reach the radius.
      draws: How many sets of output pixels of each size.
      pixel_attack: (eps, step size, steps) of PGD on output pixels, linf, in levels.
      channels: The image channels of gradients and attacks; empty: all.
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
        """The entry of parts and records that names the channels; empty for all."""
        return {"attack_channels": list(self.channels)} if self.channels else {}


def settings_of(
    config: AttackConfig, tasks: Sequence[str] | TaskSet
) -> MeasureSettings:
    """The settings from flags, with two smaller radii that show the first-order limit.

    Raises:
      InputError: The measure `tasks` has too many tasks, or `parse_groups` refuses the
        groups or the spared tasks.
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
    """Raises `InputError` for gradients of losses that are at their minimum.

    Losses on numbers are, because the targets are the model's own clean outputs.
    """
    maps = [task.name for task in tasks.values() if task.is_map]
    in_groups = [name for group in settings.groups for name in group]
    by_measure = {"tasks": tasks, "pixels": maps, "blocks": maps}
    by_measure |= {"first_order": in_groups}
    for name in settings.measures:
        for task in by_measure.get(name, ()):
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
    """Runs the measures that are not finished; returns one record per number.

    Args:
      subject: The model, the images and how to go through them.
      settings: What is measured.
      provenance: Everything else that the arrays depend on.
      warnings: Sentences about the model, which every record repeats.
      folder: Finished parts are kept in its `measures/`.
    """
    channel_field = settings.of_channels
    facts = provenance.to_dict() | channel_field
    parts = Parts(folder / "measures", facts, subject.workers)
    job = _Job(subject, settings, parts)
    records = []
    for name in settings.measures:
        records += _MEASURES[name](job)
    common = {"n": subject.num_examples, **provenance.of_measures(warnings)}
    return [record | common | channel_field for record in records]


# The measures.


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the measures of a call share: each pass is compiled only once."""

    subject: Subject
    settings: MeasureSettings
    parts: Parts
    passes: dict[str, Pass] = dataclasses.field(default_factory=dict)

    @property
    def channels(self) -> tuple[int, ...]:
        """The image channels of gradients and attacks; empty: all."""
        return self.subject.attacked_channels(self.settings.channels)

    def one(
        self, name: str, step: Callable[..., dict[str, tf.Tensor]], cost: float
    ) -> Pass:
        """The pass of a name; a new one runs `step` and has this cost."""
        return self.passes.setdefault(name, Pass(self.subject, step, cost))

    def finish(self, parts: Sequence[Part], label: str) -> list[Arrays]:
        """The arrays of the parts; see `Parts.finish`."""
        return self.parts.finish(parts, self.subject.num_examples, label)

    def of_masks(
        self,
        masks: _Masks,
        about: Mapping[str, Any],
        step: tuple[str, Callable[..., dict[str, tf.Tensor]], int],
        collect: Callable[[list[Arrays]], Arrays],
        label: str,
    ) -> dict[int, Arrays]:
        """Runs a step on masks of each number of output pixels.

        Args:
          masks: Masks of the pixels; each is passed to the step.
          about: Describes the parts, in addition to their numbers of pixels and draws.
          step: (name, function, how many passes of the model one draw costs).
          collect: Joins the arrays of all draws of one number of pixels.
          label: What the progress bar shows.
        """
        name, function, passes = step
        run_pass = self.one(name, function, passes * sum(map(len, masks.values())))

        def make(pixels: Sequence[np.ndarray], advance: Callable) -> Arrays:
            return collect([run_pass(advance, tf.constant(mask)) for mask in pixels])

        parts = [
            Part(
                {**about, "pixels": count, "draws": len(pixels)},
                passes,
                functools.partial(make, pixels),
                len(pixels),
            )
            for count, pixels in masks.items()
        ]
        return dict(zip(masks, self.finish(parts, label), strict=True))


def _tasks(job: _Job) -> list[dict]:
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


def _pixel_measure(measure: str, job: _Job) -> list[dict]:
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
    measure: str, masks: _Masks, job: _Job, tasks: TaskSet
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
    return measure_records.of_pixel_gradients(
        measure, by_count, tuple(tasks), subject.seed, subject.units
    )


def _pixel_attack(measure: str, masks: _Masks, job: _Job, task: Task) -> list[dict]:
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
    return measure_records.of_pixel_attacks(
        measure, task, by_count, eps, job.subject.seed, job.subject.units
    )


def _first_order(job: _Job) -> list[dict]:
    """Compares what PGD reaches with eps times the dual norm of the gradient."""
    return [
        record
        for group in job.settings.groups
        for record in _group_first_order(group, job)
    ]


def _group_first_order(group: Sequence[str], job: _Job) -> list[dict]:
    subject, settings = job.subject, job.settings
    unit = 1 / 255 if settings.norm == "linf" else 1.0
    run_pass = Pass(
        subject,
        steps_lib.first_order(
            subject, group, settings.norm, settings.steps, job.channels
        ),
        (settings.steps + 4) * len(settings.eps),
    )

    def make(eps, advance):
        arrays = run_pass(advance, tf.constant(eps * unit, tf.float64))
        valid = arrays.pop("valid").all(axis=1)
        return {name: np.where(valid, array, np.nan) for name, array in arrays.items()}

    name = "+".join(group)
    about = {"part": "first order", "tasks": name}
    about |= {"norm": settings.norm, "steps": settings.steps}
    parts = [
        Part({**about, "eps": eps}, settings.steps + 4, functools.partial(make, eps))
        for eps in settings.eps
    ]
    label = name if len(group) < 4 else f"{len(group)} tasks"
    arrays = job.finish(parts, f"first order of {label}")
    by_eps = dict(zip(settings.eps, arrays, strict=True))
    return measure_records.of_first_order(
        group, settings.norm, unit, by_eps, subject.seed, subject.units
    )


def _corruptions(job: _Job) -> list[dict]:
    """Metrics on images that are corrupted in common ways, and on clean ones."""
    parts = {("", 0): _corruption_part(job, "", 0.0)}
    for name, strengths in corruptions.SEVERITIES.items():
        for severity, strength in enumerate(strengths, 1):
            parts[name, severity] = _corruption_part(job, name, strength)
    arrays = job.finish(list(parts.values()), "measuring corruptions")
    by_severity = dict(zip(parts, arrays, strict=True))
    subject = job.subject
    return measure_records.of_corruptions(
        subject.tasks, by_severity, subject.seed, subject.units, subject.info.units
    )


def _corruption_part(job: _Job, name: str, strength: float) -> Part:
    """Rows of metrics under a corruption; one graph serves all its strengths."""
    step = steps_lib.corrupted(job.subject, name, job.channels)
    run_pass = job.one(f"corruption {name}", step, cost=0)
    about: dict[str, Any] = {"part": "corruption", "tasks": list(job.subject.tasks)}
    about |= {"name": name, "strength": strength}
    extra_metrics = {
        task.name: [m.name for m in task.more] for task in job.subject.tasks.values()
    }
    if any(extra_metrics.values()):  # Parts of earlier versions have no such entry.
        about["metrics"] = extra_metrics
    return Part(about, 0.5, lambda advance: run_pass(advance, tf.constant(strength)))


_MEASURES = {
    "corruptions": _corruptions,
    "tasks": _tasks,
    "pixels": functools.partial(_pixel_measure, "pixels"),
    "blocks": functools.partial(_pixel_measure, "blocks"),
    "first_order": _first_order,
}


# Sets of output pixels: random ones, and blocks.


def random_sets(
    height: int, width: int, draws: int, seed: int
) -> dict[int, list[np.ndarray]]:
    """{count: masks 0/1 `[height, width]`} of 1, 4, 16, ... random pixels, and all.

    Within a draw, smaller sets are parts of larger ones. All pixels are a single set.
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
    """Like `random_sets`, with square blocks of side 1, 2, 4, ..., and all pixels."""
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
    """The seed of a draw; draws under different seeds have none in common."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
