# SPDX-License-Identifier: Apache-2.0
"""Attacked examples of each task: the same images for all variants, under one attack.

The pictures are those that every finished cell keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.evaluation import cell_files
from mtr_tf.show import gallery
from mtr_tf.show import text
from mtr_tf.study.report.plots import Plot

Record = Mapping[str, Any]
_EXAMPLES = 3  # The most examples of each variant.
HEADINGS = tuple(
    heading.replace("\n", " ") for heading in (*gallery.INPUTS, *gallery.OUTPUTS)
)


@dataclasses.dataclass(frozen=True)
class Shots:
    """Examples of one variant.

    Attributes:
      variant: Its name.
      record: The cell's record of the task's first metric.
      pictures: uint8 `[examples, H, W, 3]` for each of `HEADINGS`.
    """

    variant: str
    record: Record
    pictures: tuple[np.ndarray, ...]

    @property
    def scores(self) -> str:
        """The metric on clean and on attacked images, in words."""
        unit = f" {self.record['unit']}" if self.record["unit"] else ""
        clean = text.number(self.record["clean"])
        attacked = text.number(self.record["attacked_value"])
        return f"{self.record['metric']} {clean} → {attacked}{unit}"


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Examples of one task under one attack, of all variants that have it."""

    task: str
    shots: tuple[Shots, ...]

    @property
    def id(self) -> str:
        """The gallery's name, for files and links."""
        return text.identifier("gallery", self.task)

    @property
    def attack(self) -> str:
        """The attack that is shown, in words."""
        first = self.shots[0].record
        unit = " levels of 0-255" if first["norm"] == "linf" else ""
        return (
            f"{first['spec']} ({first['attack']} on {'+'.join(first['attacked'])}), "
            f"{first['norm']} eps {first['eps']:g}{unit}, seed {first['seed']}"
        )


def make(records: Sequence[Record], workdir: pathlib.Path) -> list[Gallery]:
    """A gallery for each attacked task, in the order of the records.

    It shows the attack, radius and seed with the fewest attacked tasks; among equals,
    with the most variants, then with the largest radius, then with the lowest seed.

    Args:
      records: Records as `Results.records` returns them.
      workdir: The study's folder.
    """
    galleries = []
    for task in dict.fromkeys(task for r in records for task in r["attacked"]):
        task_records = [
            r for r in records if r["task"] == task and task in r["attacked"]
        ]
        metric = task_records[0]["metric"] if task_records else ""
        shots = _shots(
            [r for r in task_records if r["metric"] == metric], task, workdir
        )
        if shots:
            galleries.append(Gallery(task, shots))
    return galleries


def _shots(
    records: Sequence[Record], task: str, workdir: pathlib.Path
) -> tuple[Shots, ...]:
    by_attack: dict[tuple, list] = {}
    for record in records:
        key = (record["spec"], record["attack"], tuple(record["attacked"]))
        by_attack.setdefault((*key, record["eps"], record["seed"]), []).append(record)

    def rank(key: tuple) -> tuple:
        *_, attacked, eps, seed = key
        return -len(attacked), len(by_attack[key]), eps, -seed

    for key in sorted(by_attack, key=rank, reverse=True):
        candidates = [_read(workdir, record, task) for record in by_attack[key]]
        shots = tuple(shot for shot in candidates if shot)
        if shots:
            return shots
    return ()


def _read(workdir: pathlib.Path, record: Record, task: str) -> Shots | None:
    """The pictures of a record's cell; None where they cannot be read."""
    try:
        folder = workdir / record["folder"]
        clean = cell_files.read(folder / record["clean_rows"], "picture/").pictures
        attacked = cell_files.read(folder / record["rows"], "picture/").pictures
        arrays = (
            clean["image"],
            attacked["adversarial"],
            attacked["perturbation"],
            clean[f"target/{task}"],
            clean[f"output/{task}"],
            attacked[f"output/{task}"],
        )
    except files.DAMAGED:
        return None
    return Shots(record["variant"], record, tuple(a[:_EXAMPLES] for a in arrays))


def plot(examples: Gallery) -> Plot:
    """The plot of the first example of each variant, for files and TensorBoard."""
    title = f"{examples.task} under {examples.attack}"
    caption = f"{title}. The perturbation is magnified."
    variants = [shots.variant for shots in examples.shots]
    pictures = [shots.pictures for shots in examples.shots]
    draw = functools.partial(gallery.of_variants, title, variants, pictures)
    return Plot(examples.id, examples.task, caption, caption, draw)
