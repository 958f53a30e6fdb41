# SPDX-License-Identifier: Apache-2.0
"""Fits a study to data that lack some of its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from mtr_tf.errors import InputError
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study


def to_tasks(study: Study, dataset: str, dataset_tasks: Collection[str]) -> Study:
    """Returns a study without the parts that need tasks the data set does not have.

    Variants with such a task are left out, and so are the attacks and claims of which
    nothing remains. Where an attack or claim names several variants, only those with
    missing tasks are left out: a mean over auxiliary tasks covers those that exist.
    `about` names what was left out.

    Args:
      study: The study.
      dataset: Name of the data set.
      dataset_tasks: The tasks that the data set has, by their full names.

    Raises:
      InputError: No variant is left.
    """
    missing_tasks = {
        v.name: _missing_tasks(study, v.name, dataset, dataset_tasks)
        for v in study.variants
    }
    variant_names = [name for name, tasks in missing_tasks.items() if not tasks]
    if len(variant_names) == len(missing_tasks):
        return study
    if not variant_names:
        raise InputError(
            f"the study {study.name} has no models for {dataset}, which has the tasks "
            f"{', '.join(dataset_tasks)}; choose another --study or --dataset."
        )
    attacks = [
        spec for attack in study.attacks if (spec := _attack(attack, variant_names))
    ]
    attack_names = [attack.name for attack in attacks]
    claims = [
        new_claim
        for claim in study.claims
        if (new_claim := _claim(claim, variant_names, attack_names))
    ]
    new_study = dataclasses.replace(
        study,
        variants=tuple(v for v in study.variants if v.name in variant_names),
        attacks=tuple(attacks),
        claims=tuple(claims),
    )
    missing = dict.fromkeys(task for tasks in missing_tasks.values() for task in tasks)
    about = f"{study.about} {_describe(study, new_study, dataset, missing)}"
    return dataclasses.replace(new_study, about=about)


def _missing_tasks(
    study: Study, name: str, dataset: str, dataset_tasks: Collection[str]
) -> list[str]:
    """The missing tasks of a variant and of those that its training begins with.

    A variant that names another data set has no missing tasks of its own.
    """
    variant = study.variant(name)
    init_missing = (
        _missing_tasks(study, variant.init_from, dataset, dataset_tasks)
        if variant.init_from
        else []
    )
    if not variant.is_on(dataset):
        return init_missing
    tasks = study.names(study.train_config(name, study.seeds[0]).tasks)
    return [*init_missing, *(task for task in tasks if task not in dataset_tasks)]


def _attack(spec: AttackSpec, variant_names: Collection[str]) -> AttackSpec | None:
    """The attack on the variants that remain; None if nothing is left of it."""
    variants = tuple(name for name in spec.variants if name in variant_names)
    if not variants or (spec.source and spec.source not in variant_names):
        return None
    return dataclasses.replace(spec, variants=variants)


def _claim(
    claim: dict[str, Any], variant_names: Collection[str], attacks: Collection[str]
) -> dict[str, Any] | None:
    """The claim about the variants that remain; None if one of its sides is empty."""
    fields = {}
    for key, value in claim.items():
        if key == "attack" and value not in attacks:
            return None
        if key in ("variant", "variants", "better", "than", "matched"):
            value = _select(value, variant_names)
        elif key == "terms":
            value = [_claim(term, variant_names, attacks) for term in value]
            value = [] if None in value else value
        elif key in ("measure", "minus") and isinstance(value, dict) and value:
            value = _claim(value, variant_names, attacks)
        if value in (None, [], ()):
            return None
        fields[key] = value
    return fields


def _select(value: Any, variant_names: Collection[str]) -> Any:
    """What remains of one variant, a list of them, or the table of `matched` ones."""
    if isinstance(value, str):
        return value if value in variant_names else None
    if isinstance(value, dict):
        return _claim(value, variant_names, ())
    return [name for name in value if name in variant_names]


def _describe(
    study: Study, new_study: Study, dataset: str, missing: Collection[str]
) -> str:
    """What was left out, and why."""
    parts, new_names = [], _names(new_study)
    for key, names in _names(study).items():
        omissions = [name for name in names if name not in new_names[key]]
        if omissions:
            parts.append(f"{key} {', '.join(omissions)}")
    return (
        f"{dataset} has no {' or '.join(missing)}, so these are left out: "
        f"{'; '.join(parts)}."
    )


def _names(study: Study) -> dict[str, list[str]]:
    """The names of a study's variants, attacks and claims."""
    return {
        "variants": [variant.name for variant in study.variants],
        "attacks": [attack.name for attack in study.attacks],
        "claims": [claim["id"] for claim in study.claims],
    }
