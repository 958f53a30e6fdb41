# SPDX-License-Identifier: Apache-2.0
"""Checks before a study runs that its attacks will give the numbers its claims need.

The cells of an attack and the records of a measure are known before anything runs. A
claim that no record fits, or several do, is a mistake that should be reported at once
rather than after hours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import AttackConfig
from mtr_tf.evaluation import plan
from mtr_tf.measures import corruptions
from mtr_tf.measures import gradients
from mtr_tf.measures import measure as measure_lib
from mtr_tf.measures import records
from mtr_tf.study import results
from mtr_tf.study.design import Study
from mtr_tf.study.toml_table import Table
from mtr_tf.study.toml_table import in_words
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks.metrics import Metric

# By measure and quantity: (fields with numbers, keys that tell its records apart).
# Whether the key `tasks` is needed may also depend on the model's number of tasks.
_SUM_FIELDS = ("value", "predicted", "norm_of_sum")
_SIZE_FIELDS = ("value", "predicted", "factor", "root_mean_square", "norm_of_sum")
_PIXEL_FIELDS = (
    "value",
    "predicted",
    "root_mean_square",
    "relative",
    "deviation_of_draws",
)
_NORM_KEYS = ("norm", "normalisation")
_PIXEL_QUANTITIES = {
    "gradient_norm": (_PIXEL_FIELDS, ("norm", "count")),
    "slope": (("value", "predicted"), ("norm",)),
    "attacked_pixels": (("value", "clean", "deviation_of_draws"), ("metric", "count")),
}
QUANTITIES = {
    "tasks": {
        "norm_of_mean": (_SUM_FIELDS, ("tasks", *_NORM_KEYS)),
        "norm_by_size": (_SIZE_FIELDS, ("count", *_NORM_KEYS)),
        "slope": (("value", "predicted"), _NORM_KEYS),
        "rho": (("value",), _NORM_KEYS),
        "cosine": (("value",), ("tasks",)),
        "abs_cosine": (("value",), ("tasks",)),
        "covariance": (("value",), ("tasks",)),
        "correlation": (("value",), ("tasks",)),
        "mean_cosine": (("value",), ()),
        "mean_abs_cosine": (("value",), ()),
    },
    "pixels": {**_PIXEL_QUANTITIES, "rho": (("value",), ("norm",))},
    "blocks": _PIXEL_QUANTITIES,
    "corruptions": {
        "corrupted": (("value", "clean"), ("metric", "corruption", "severity")),
        "mean_corrupted": (("value", "clean"), ("metric",)),
    },
    "first_order": {"rise": (("value", "predicted", "ratio", "clean"), ("eps",))},
}
# The keys that choose records of a measure, and the types of their values.
MEASURE = {
    "measure": str,
    "quantity": str,
    "tasks": str,
    "normalisation": str,
    "norm": str,
    "metric": str,
    "count": float,
    "eps": float,
    "corruption": str,
    "severity": float,
}
_OUTPUT_MEASURES = ("pixels", "blocks")
_LEAST_PIXELS = 64  # The fewest pixels that an image may have.
_CORRUPTION_VALUES = {
    "corruption": tuple(corruptions.SEVERITIES),
    "severity": tuple(range(1, 1 + len(next(iter(corruptions.SEVERITIES.values()))))),
}


def check_attack(
    table: Table, study: Study, attack: str, variant: str, fields: Mapping[str, Any]
) -> None:
    """Refuses a number for which an attack on a variant will not have just one record.

    Args:
      table: The claim, for messages.
      study: The study.
      attack: Name of one of its attacks.
      variant: Name of a variant that the attack is run on.
      fields: What `Results.record` will search for: `task`, and for attacked images
        also `eps`, `attacked` and those of `results.CHOICES` that the claim gives.
    """
    config = _config(study, attack, variant)
    if config.attack == NO_ATTACK:
        table.fail(f"attack {attack!r} of the study only measures.")
    tasks = _tasks(study, config, variant)
    table.one_of(f"task of attack {attack!r}", fields["task"], tasks)
    if study.has_own_data:  # Only the data know which losses fit their tasks.
        if "eps" in fields:
            table.one_of(f"eps of attack {attack!r}", fields["eps"], config.eps)
        return
    cells = planned(config, tasks)
    fields = {key: value for key, value in fields.items() if key != "task"}
    for key, value in fields.items():
        values = list({in_words(cell[key]): cell[key] for cell in cells}.values())
        if not any(results.fits(cell, {key: value}) for cell in cells):
            table.one_of(f"{key} of attack {attack!r}", value, values)
    matches = [cell for cell in cells if results.fits(cell, fields)]
    if not matches:
        text = " and ".join(f"{key} {in_words(value)}" for key, value in fields.items())
        table.fail(f"attack {attack!r} of the study has no single result with {text}.")
    if len(matches) > 1 and "eps" in fields:
        table.fail(results.ambiguous(attack, matches, fields))


def planned(config: AttackConfig, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """For each cell of an attack, the fields of its records that claims choose by."""
    return [
        {
            "eps": cell.eps,
            "attacked": list(cell.tasks),
            "algorithm": cell.attack.name,
            "loss": "+".join(cell.objective.losses) or "own",
            "balance": cell.objective.balance,
            "targeted": cell.objective.targeted,
            "norm": cell.threat.norm,
            "steps": cell.attack.steps,
            "restarts": cell.attack.restarts,
        }
        for cell in plan.make_cells(config, tasks, config.attack_classes)
    ]


def check_measure(table: Table, study: Study, measure: Mapping[str, Any]) -> None:
    """Refuses a measure for which the claim's attack will not leave one number."""
    attack = measure["attack"]
    for variant in measure["variants"]:
        config = _config(study, attack, variant)
        label = f"measure of attack {attack!r}"
        table.one_of(label, measure["measure"], config.measure)
        tasks = _tasks(study, config, variant)
        for task in measure.get("tasks", ()):
            table.one_of(f"task of variant {variant!r}", task, tasks)
        quantity = measure["quantity"]
        quantities = QUANTITIES[measure["measure"]]
        label = f"quantity of {measure['measure']}"
        fields, keys = quantities[table.one_of(label, quantity, list(quantities))]
        for field in filter(None, (measure["field"], measure["ratio_to"])):
            table.one_of(f"field of {quantity}", field, fields)
        if measure["measure"] != "tasks" and len(tasks) > 1:
            keys = (*keys, "tasks")
        for key in keys:
            if key not in measure:
                table.fail(f"{key} must be given to say which {quantity} is meant.")
        if "metric" in keys and not study.has_own_data:  # Else results tell.
            _check_metric(table, study, measure, variant, tasks)
        size = config.parsed_image_size
        size = size or study.train_config(variant, study.seeds[0]).parsed_image_size
        _check_keys(table, measure, keys, _key_values(config, measure, tasks, size))
        groups = _groups(config, measure, tasks)
        if "tasks" in measure and groups is not None:
            label = f"group of tasks of {quantity}"
            table.one_of(label, sorted(measure["tasks"]), groups)


def _check_keys(
    table: Table,
    measure: Mapping[str, Any],
    keys: Sequence[str],
    key_values: Mapping[str, Sequence[Any]],
) -> None:
    """Refuses keys that no record has, and values that no record has for a key."""
    for key, values in key_values.items():
        for value in _as_list(measure.get(key, [])):
            table.one_of(key, value, values)
    allowed = ("measure", "quantity", "tasks", *keys, *key_values)
    for key in MEASURE:
        if key in measure and key not in allowed:
            table.fail(
                f"{key} must not be given, for no {measure['quantity']} has one."
            )


def metrics_of(study: Study, attack: str, variant: str, task: str) -> list[Metric]:
    """The metrics that an attack's records of one of the eleven tasks may have."""
    names = study.attack_fields(attack, variant, study.seeds[0]).get("metrics", ())
    extra = [name for name in names if name != metric_names.ALL]
    if metric_names.ALL in names:
        extra += metric_names.MORE
    return [*TASKS[task].metrics, *map(more_metrics.named, extra)]


def _check_metric(
    table: Table,
    study: Study,
    measure: Mapping[str, Any],
    variant: str,
    tasks: Sequence[str],
) -> None:
    """Refuses metrics that records lack, or that differ in which values are better."""
    better = {}
    for task in measure.get("tasks", tasks):
        metrics = records.shown_metrics(TASKS[task])
        if measure["measure"] not in _OUTPUT_MEASURES:
            metrics = metrics_of(study, measure["attack"], variant, task)
        better |= {metric.name: metric.better for metric in metrics}
    names = _as_list(measure["metric"])
    for name in names:
        table.one_of("metric", name, list(better))
    names += _as_list(measure["minus"].get("metric", []))
    if len({better[name] for name in names if name in better}) > 1:
        table.fail(MIXED)


MIXED = (
    "the metrics of a measure must agree in whether higher or lower values are better; "
    "make a claim for each kind."
)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _key_values(
    config: AttackConfig,
    measure: Mapping[str, Any],
    tasks: Sequence[str],
    size: tuple[int, int] | None,
) -> Mapping[str, Sequence[Any]]:
    """The values that records of a quantity have, by key; without tasks and metrics.

    `size` is that of the images; see `_counts`.
    """
    kind, quantity = measure["measure"], measure["quantity"]
    numbers = range(1, 1 + len(tasks))
    if kind == "corruptions":
        return _CORRUPTION_VALUES if quantity == "corrupted" else {}
    if kind == "first_order":
        eps = measure_lib.settings_of(config, tasks).eps
        return {"eps": eps, "norm": (config.norm,), "count": numbers}
    if quantity == "attacked_pixels":
        eps = measure_lib.MeasureSettings.pixel_attack[:1]
        return {"norm": ("linf",), "count": _counts(measure, size), "eps": eps}
    values: dict[str, Sequence[Any]] = {"norm": records.NORMS}
    if kind in _OUTPUT_MEASURES:
        values["normalisation"] = ("raw",)
    elif "normalisation" in QUANTITIES[kind][quantity][1]:
        values["normalisation"] = gradients.NORMALISATIONS
    else:
        values["norm"] = ("l2",)
    if quantity == "gradient_norm":
        values["count"] = _counts(measure, size)
    elif quantity in ("norm_of_mean", "norm_by_size"):
        values["count"] = numbers
    return values


def _groups(
    config: AttackConfig, measure: Mapping[str, Any], tasks: Sequence[str]
) -> list[list[str]] | None:
    """The groups of tasks that records of a quantity have; None if any group is."""
    kind, quantity = measure["measure"], measure["quantity"]
    if quantity == "norm_of_mean":
        return None
    groups: Iterable[Sequence[str]] = [(task,) for task in tasks]
    if kind == "first_order":
        groups = measure_lib.settings_of(config, tasks).groups
    elif kind == "tasks":
        in_pairs = "tasks" in QUANTITIES[kind][quantity][1]
        groups = itertools.combinations(tasks, 2) if in_pairs else ()
    return [sorted(group) for group in groups]


def _counts(measure: Mapping[str, Any], size: tuple[int, int] | None) -> list[int]:
    """The numbers of output pixels that records have for images of a size.

    The largest is the number of all pixels. If the size is unknown (None), that may be
    any number of pixels that an image can have.
    """
    if size:
        return measure_lib.COUNTS[measure["measure"]](*size)
    full_counts = [
        count for count in _as_list(measure.get("count", [])) if count >= _LEAST_PIXELS
    ]
    return [4**power for power in range(8)] + full_counts


def _config(study: Study, attack: str, variant: str) -> AttackConfig:
    fields = study.attack_fields(attack, variant, study.seeds[0])
    return AttackConfig(ckpt="-", **fields)


def _tasks(study: Study, config: AttackConfig, variant: str) -> tuple[str, ...]:
    """The tasks that the attack looks at, in the model's order."""
    model_tasks = study.names(study.train_config(variant, study.seeds[0]).tasks)
    attack_tasks = study.names(config.tasks) if config.tasks else model_tasks
    return tuple(task for task in model_tasks if task in attack_tasks)
