# SPDX-License-Identifier: Apache-2.0
"""The records of a study's attacks as curves: a metric over the radius."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.show import text
from mtr_tf.show.side_by_side import size_of
from mtr_tf.study.results import CHOICES

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of one task under one attack, of all variants.

    Attributes:
      spec: The attack's name in the study.
      label: What tells the attacks of one spec apart, such as "apgd-js".
      attacked: The tasks attacked together.
      task: The task that the metric is of.
      metric: Name of the metric.
      headline: Whether it is the task's first metric.
      facts: What all its records have in common: "unit", "better", "targets", and the
        fields of `CHOICES`, such as "norm" and "algorithm".
      eps: Radii `[E]`, increasing; the first is 0, for the clean images.
      values: {variant: `[seeds, E]`}, NaN where there is no result.
      warnings: {finding of a check: {variant: its seeds}}.
      reference: A variant whose values of the same seeds are subtracted; empty if none.
      ends: {variant: `[2, seeds, E]`}, the values' intervals over images.
      images: The images in words; empty if all records of the study are of the same.
    """

    spec: str
    label: str
    attacked: tuple[str, ...]
    task: str
    metric: str
    headline: bool
    facts: Mapping[str, Any]
    eps: np.ndarray
    values: dict[str, np.ndarray]
    warnings: dict[str, dict[str, list[int]]]
    reference: str = ""
    ends: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    images: str = ""

    @property
    def id(self) -> str:
        """The plot's name, for files and links."""
        kind = "less" if self.reference else "curve"
        group = "+".join(self.attacked)
        return text.identifier(
            kind, self.spec, self.label, group, self.task, self.metric
        )

    @property
    def title(self) -> str:
        """A line above the plot."""
        difference = f" minus that of {self.reference}" if self.reference else ""
        images = f", {self.images}" if self.images else ""
        return f"{self.task} {self.metric}{difference} under {self.attack}{images}"

    @property
    def first(self) -> bool:
        """Whether it is shown at once: the first metric of an attacked task."""
        return self.headline and self.task in self.attacked

    @property
    def attack(self) -> str:
        """The attack in words."""
        label = "" if self.label == self.spec else f"{self.label} "
        return f"{self.spec} ({label}on {'+'.join(self.attacked)})"


def make(records: Sequence[Record], variants: Sequence[str], seeds: Sequence[int]):
    """All curves that there are records of, in the order of the records.

    Args:
      records: Records as `Results.records` returns them.
      variants: Names of the variants, in the order of the study.
      seeds: The seeds of the study.

    Returns:
      A list of `Curve`.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    headlines: dict[str, str] = {}
    for record in records:
        headlines.setdefault(record["task"], record["metric"])
    curves = [
        _curve(key, members, headlines, variants, seeds)
        for key, members in groups.items()
    ]
    if len(_kinds_of_images(records)) == 1:
        curves = [dataclasses.replace(curve, images="") for curve in curves]
    return curves


def _key(record: Record) -> tuple:
    attacked = tuple(record["attacked"])
    return record["spec"], record["attack"], attacked, record["task"], record["metric"]


def _curve(key, records, headlines, variants, seeds) -> Curve:
    spec, label, attacked, task, metric = key
    eps = np.array(sorted({0.0, *(float(record["eps"]) for record in records)}))
    names = {record["variant"] for record in records}
    values = {
        v: np.full((len(seeds), len(eps)), np.nan) for v in variants if v in names
    }
    ends = {v: np.full((2, len(seeds), len(eps)), np.nan) for v in values}
    for record in records:
        seed, variant = list(seeds).index(record["seed"]), record["variant"]
        kinds = {0.0: ("clean", "clean_interval")}
        if record["eps"]:
            kinds[record["eps"]] = ("attacked_value", "attacked_interval")
        for radius, (value, interval) in kinds.items():
            index = seed, np.searchsorted(eps, radius)
            values[variant][index] = _number(record[value])
            ends[variant][:, *index] = record.get(interval) or (np.nan, np.nan)
    first_record = records[0]
    facts = {
        name: first_record.get(name) for name in ("unit", "better", "targets", *CHOICES)
    }
    return Curve(
        spec,
        label,
        attacked,
        task,
        metric,
        headlines[task] == metric,
        facts,
        eps,
        values,
        warnings(records),
        ends=ends,
        images=images(records),
    )


def with_differences(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, where each one with `first` is followed by its differences.

    Differences are those of each variant from the first variant, for equal seeds.
    """
    all_curves = []
    for curve in curves:
        all_curves.append(curve)
        if curve.first and len(curve.values) > 1:
            reference, *names = curve.values
            baseline = curve.values[reference]
            values = {name: curve.values[name] - baseline for name in names}
            changes = {"values": values, "ends": {}, "reference": reference}
            all_curves.append(dataclasses.replace(curve, warnings={}, **changes))
    return all_curves


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def images(records: Iterable[Record]) -> str:
    """The images in words: `96 images of rooms (validation) at 32x48 pixels`.

    The size is left out if records lack it. If the targets are the model's own outputs,
    the words say so.
    """
    texts = [
        f"{n} images of {name} ({split})"
        + (f" at {size} pixels" if size else "")
        + (", against the model's own outputs" if targets == OWN_TARGETS else "")
        for n, name, split, size, targets in sorted(_kinds_of_images(records))
    ]
    return " or ".join(texts)


def _kinds_of_images(records: Iterable[Record]) -> set[tuple[int, str, str, str, str]]:
    """Each (n, data set, split, size, targets) of the records once."""
    return {
        (r["n"], r["dataset"], r["split"], size_of(r), r.get("targets", ""))
        for r in records
    }


def warnings(records: Sequence[Record]) -> dict[str, dict[str, list[int]]]:
    """{finding of a check, without its numbers: {variant: its seeds}}."""
    by_reason: dict[str, dict[str, list[int]]] = {}
    for record in records:
        for warning in record.get("warnings") or ():
            reason = re.sub(r" \([^()]*\)\.?$", "", warning)
            seeds = by_reason.setdefault(reason, {}).setdefault(record["variant"], [])
            if record["seed"] not in seeds:
                seeds.append(record["seed"])
    return by_reason


def warning_lines(by_reason: Mapping[str, Mapping[str, Iterable[int]]]) -> list[str]:
    """A sentence per warning, with the variants and seeds that it is about."""
    return [
        f"{reason} [{'; '.join(_variant_seeds(*item) for item in by_variant.items())}]"
        for reason, by_variant in by_reason.items()
    ]


def _variant_seeds(variant: str, seeds: Iterable[int]) -> str:
    return f"{variant}: {text.numbers_in_words(sorted(seeds))}"
