# SPDX-License-Identifier: Apache-2.0
"""Fits a study to data that lack some of its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from mtr_tf.errors import InputError
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study


def to_tasks(study: Study, dataset: str, has: Collection[str]) -> Study:
    """Returns a study without the parts that need tasks the data set does not have.

    It leaves out the variants with such a task, and the attacks and claims of which
    nothing remains. Where several variants are named, only those with missing tasks are
    left out: a mean over auxiliary tasks covers those that exist. `about` says so.

    Args:
      study: What is to be done.
      dataset: Name of the data set.
      has: The tasks that it has, by their full names.

    Raises:
      InputError: No variant is left.
    """
    lacking = {v.name: _lacking(study, v.name, dataset, has) for v in study.variants}
    kept = [name for name, tasks in lacking.items() if not tasks]
    if len(kept) == len(lacking):
        return study
    if not kept:
        raise InputError(
            f"the study {study.name} has no models for {dataset}, which has the tasks "
            f"{', '.join(has)}; choose another --study or --dataset."
        )
    attacks = [spec for each in study.attacks if (spec := _attack(each, kept))]
    names = [each.name for each in attacks]
    claims = [found for each in study.claims if (found := _claim(each, kept, names))]
    fitted = dataclasses.replace(
        study,
        variants=tuple(each for each in study.variants if each.name in kept),
        attacks=tuple(attacks),
        claims=tuple(claims),
    )
    missing = dict.fromkeys(task for tasks in lacking.values() for task in tasks)
    about = f"{study.about} {_describe(study, fitted, dataset, missing)}"
    return dataclasses.replace(fitted, about=about)


def _lacking(
    study: Study, variant: str, dataset: str, has: Collection[str]
) -> list[str]:
    """The tasks that are not there, of a variant and of those that it begins with.

    None of a variant that names other data itself.
    """
    own = study.variant(variant)
    before = _lacking(study, own.init_from, dataset, has) if own.init_from else []
    if not own.is_on(dataset):
        return before
    wanted = study.names(study.train_config(variant, study.seeds[0]).tasks)
    return [*before, *(task for task in wanted if task not in has)]


def _attack(spec: AttackSpec, kept: Collection[str]) -> AttackSpec | None:
    """The attack on those variants that are kept; None where nothing is left."""
    variants = tuple(name for name in spec.variants if name in kept)
    if not variants or (spec.source and spec.source not in kept):
        return None
    return dataclasses.replace(spec, variants=variants)


def _claim(
    claim: dict[str, Any], kept: Collection[str], attacks: Collection[str]
) -> dict[str, Any] | None:
    """The claim on what is kept; None where one of its sides is empty."""
    found = {}
    for key, value in claim.items():
        if key == "attack" and value not in attacks:
            return None
        if key in ("variant", "variants", "better", "than", "matched"):
            value = _kept(value, kept)
        elif key == "terms":
            value = [_claim(term, kept, attacks) for term in value]
            value = [] if None in value else value
        elif key in ("measure", "minus") and isinstance(value, dict) and value:
            value = _claim(value, kept, attacks)
        if value in (None, [], ()):
            return None
        found[key] = value
    return found


def _kept(named: Any, kept: Collection[str]) -> Any:
    """One variant, several, or the table of `matched` ones: those that are kept."""
    if isinstance(named, str):
        return named if named in kept else None
    if isinstance(named, dict):
        return _claim(named, kept, ())
    return [name for name in named if name in kept]


def _describe(
    study: Study, fitted: Study, dataset: str, missing: Collection[str]
) -> str:
    """What was left out, and why."""
    parts, after = [], _names(fitted)
    for key, names in _names(study).items():
        left_out = [name for name in names if name not in after[key]]
        if left_out:
            parts.append(f"{key} {', '.join(left_out)}")
    return (
        f"{dataset} has no {' or '.join(missing)}, so these are left out: "
        f"{'; '.join(parts)}."
    )


def _names(study: Study) -> dict[str, list[str]]:
    """What its parts are called."""
    return {
        "variants": [variant.name for variant in study.variants],
        "attacks": [attack.name for attack in study.attacks],
        "claims": [claim["id"] for claim in study.claims],
    }
