# SPDX-License-Identifier: Apache-2.0
"""Checks before a study runs that its attacks will give the numbers its claims need.

An attack's cells are known before it runs, and so are the records of a measure. If no
record fits a claim, or several do, that is a mistake which should not take hours to
appear.
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
from mtr_tf.measures import pixel_records
from mtr_tf.measures import records
from mtr_tf.study import results
from mtr_tf.study.design import Study
from mtr_tf.study.toml_table import Table
from mtr_tf.study.toml_table import in_words
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks.metrics import Metric

# By measure and quantity: (fields with numbers, keys that tell its records apart). Of
# `tasks` it depends on the model's tasks whether they must be named.
_SUMS = ("value", "predicted", "norm_of_sum")
_SIZES = ("value", "predicted", "factor", "root_mean_square", "norm_of_sum")
_PIXELS = ("value", "predicted", "root_mean_square", "relative", "deviation_of_draws")
_HOW = ("norm", "normalisation")
_OF_PIXELS = {
    "gradient_norm": (_PIXELS, ("norm", "count")),
    "slope": (("value", "predicted"), ("norm",)),
    "attacked_pixels": (("value", "clean", "deviation_of_draws"), ("metric", "count")),
}
QUANTITIES = {
    "tasks": {
        "norm_of_mean": (_SUMS, ("tasks", *_HOW)),
        "norm_by_size": (_SIZES, ("count", *_HOW)),
        "slope": (("value", "predicted"), _HOW),
        "rho": (("value",), _HOW),
        "cosine": (("value",), ("tasks",)),
        "abs_cosine": (("value",), ("tasks",)),
        "covariance": (("value",), ("tasks",)),
        "correlation": (("value",), ("tasks",)),
        "mean_cosine": (("value",), ()),
        "mean_abs_cosine": (("value",), ()),
    },
    "pixels": {**_OF_PIXELS, "rho": (("value",), ("norm",))},
    "blocks": _OF_PIXELS,
    "corruptions": {
        "corrupted": (("value", "clean"), ("metric", "corruption", "severity")),
        "mean_corrupted": (("value", "clean"), ("metric",)),
    },
    "first_order": {"rise": (("value", "predicted", "ratio", "clean"), ("eps",))},
}
# What chooses the records of a measure, and of what kind it is.
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
_OF_OUTPUTS = ("pixels", "blocks")
_SMALLEST = 64  # Pixels of an image.
_CHOICES = {  # Of corruptions.
    "corruption": tuple(corruptions.SEVERITIES),
    "severity": tuple(range(1, 1 + len(next(iter(corruptions.SEVERITIES.values()))))),
}


def check_attack(
    table: Table, study: Study, attack: str, variant: str, wanted: Mapping[str, Any]
) -> None:
    """Refuses a number that an attack on a variant will not have just one of.

    Args:
      table: The claim, for messages.
      study: The study.
      attack: Name of an attack of it.
      variant: Name of a variant that it is run on.
      wanted: What `Results.record` is to find: `task`, and of attacked images also
        `eps`, `attacked` and what else is given of `results.CHOICES`.
    """
    config = _config(study, attack, variant)
    if config.attack == NO_ATTACK:
        table.fail(f"attack {attack!r} of the study only measures.")
    looked_at = _tasks(study, config, variant)
    table.one_of(f"task of attack {attack!r}", wanted["task"], looked_at)
    if study.has_own_data:  # Which losses fit their tasks, only the data know.
        if "eps" in wanted:
            table.one_of(f"eps of attack {attack!r}", wanted["eps"], config.eps)
        return
    cells = planned(config, looked_at)
    wanted = {key: value for key, value in wanted.items() if key != "task"}
    for key, value in wanted.items():
        known = list({in_words(cell[key]): cell[key] for cell in cells}.values())
        if not any(results.fits(cell, {key: value}) for cell in cells):
            table.one_of(f"{key} of attack {attack!r}", value, known)
    fitting = [cell for cell in cells if results.fits(cell, wanted)]
    if not fitting:
        said = " and ".join(f"{key} {in_words(value)}" for key, value in wanted.items())
        table.fail(f"attack {attack!r} of the study has no single result with {said}.")
    if len(fitting) > 1 and "eps" in wanted:
        table.fail(results.ambiguous(attack, fitting, wanted))


def planned(config: AttackConfig, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Of each cell of an attack, the fields of its records that claims choose by."""
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
    """Refuses a measure of a claim that its attack will not leave one number of."""
    attack = measure["attack"]
    for variant in measure["variants"]:
        config = _config(study, attack, variant)
        what = f"measure of attack {attack!r}"
        table.one_of(what, measure["measure"], config.measure)
        tasks = _tasks(study, config, variant)
        for task in measure.get("tasks", ()):
            table.one_of(f"task of variant {variant!r}", task, tasks)
        quantity = measure["quantity"]
        quantities = QUANTITIES[measure["measure"]]
        what = f"quantity of {measure['measure']}"
        fields, needed = quantities[table.one_of(what, quantity, list(quantities))]
        for field in filter(None, (measure["field"], measure["ratio_to"])):
            table.one_of(f"field of {quantity}", field, fields)
        if measure["measure"] != "tasks" and len(tasks) > 1:
            needed = (*needed, "tasks")
        for key in needed:
            if key not in measure:
                table.fail(f"{key} must be given to say which {quantity} is meant.")
        if "metric" in needed and not study.has_own_data:  # Else the results say.
            _check_metric(table, study, measure, variant, tasks)
        size = config.parsed_image_size
        size = size or study.train_config(variant, study.seeds[0]).parsed_image_size
        _check_keys(table, measure, needed, _known(config, measure, tasks, size))
        groups = _groups(config, measure, tasks)
        if "tasks" in measure and groups is not None:
            what = f"group of tasks of {quantity}"
            table.one_of(what, sorted(measure["tasks"]), groups)


def _check_keys(
    table: Table,
    measure: Mapping[str, Any],
    needed: Sequence[str],
    known: Mapping[str, Sequence[Any]],
) -> None:
    """Refuses values of keys that no record has, and keys that none has."""
    for key, values in known.items():
        for value in _listed(measure.get(key, [])):
            table.one_of(key, value, values)
    usual = ("measure", "quantity", "tasks", *needed, *known)
    for key in MEASURE:
        if key in measure and key not in usual:
            table.fail(
                f"{key} must not be given, for no {measure['quantity']} has one."
            )


def metrics_of(study: Study, attack: str, variant: str, task: str) -> list[Metric]:
    """The metrics that an attack's records of one of the eleven tasks may have."""
    asked = study.attack_fields(attack, variant, study.seeds[0]).get("metrics", ())
    more = [name for name in asked if name != metric_names.ALL]
    if metric_names.ALL in asked:
        more += metric_names.MORE
    return [*TASKS[task].metrics, *map(more_metrics.named, more)]


def _check_metric(
    table: Table,
    study: Study,
    measure: Mapping[str, Any],
    variant: str,
    tasks: Sequence[str],
) -> None:
    """Refuses a metric that records lack, and metrics that no mean can be taken of."""
    better = {}
    for task in measure.get("tasks", tasks):
        found = pixel_records.shown_metrics(TASKS[task])
        if measure["measure"] not in _OF_OUTPUTS:
            found = metrics_of(study, measure["attack"], variant, task)
        better |= {metric.name: metric.better for metric in found}
    given = _listed(measure["metric"])
    for name in given:
        table.one_of("metric", name, list(better))
    given += _listed(measure["minus"].get("metric", []))
    if len({better[name] for name in given if name in better}) > 1:
        table.fail(MIXED)


MIXED = (
    "the metrics of a measure must agree in whether higher or lower values are better; "
    "make a claim for each kind."
)


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list) else [given]


def _known(
    config: AttackConfig,
    measure: Mapping[str, Any],
    tasks: Sequence[str],
    size: tuple[int, int] | None,
) -> Mapping[str, Sequence[Any]]:
    """By key, but for tasks and metrics, the values that records of a quantity have.

    Images are of `size`; see `_counts`.
    """
    kind, quantity = measure["measure"], measure["quantity"]
    numbers = range(1, 1 + len(tasks))
    if kind == "corruptions":
        return _CHOICES if quantity == "corrupted" else {}
    if kind == "first_order":
        eps = measure_lib.settings_of(config, tasks).eps
        return {"eps": eps, "norm": (config.norm,), "count": numbers}
    if quantity == "attacked_pixels":
        eps = measure_lib.MeasureSettings.pixel_attack[:1]
        return {"norm": ("linf",), "count": _counts(measure, size), "eps": eps}
    known: dict[str, Sequence[Any]] = {"norm": records.NORMS}
    if kind in _OF_OUTPUTS:
        known["normalisation"] = ("raw",)
    elif "normalisation" in QUANTITIES[kind][quantity][1]:
        known["normalisation"] = gradients.NORMALISATIONS
    else:
        known["norm"] = ("l2",)
    if quantity == "gradient_norm":
        known["count"] = _counts(measure, size)
    elif quantity in ("norm_of_mean", "norm_by_size"):
        known["count"] = numbers
    return known


def _groups(
    config: AttackConfig, measure: Mapping[str, Any], tasks: Sequence[str]
) -> list[list[str]] | None:
    """The tasks that records of a quantity are of together; None for any of them."""
    kind, quantity = measure["measure"], measure["quantity"]
    if quantity == "norm_of_mean":
        return None
    found: Iterable[Sequence[str]] = [(task,) for task in tasks]
    if kind == "first_order":
        found = measure_lib.settings_of(config, tasks).groups
    elif kind == "tasks":
        pairs = "tasks" in QUANTITIES[kind][quantity][1]
        found = itertools.combinations(tasks, 2) if pairs else ()
    return [sorted(group) for group in found]


def _counts(measure: Mapping[str, Any], size: tuple[int, int] | None) -> list[int]:
    """The numbers of output pixels that records have, of images of a size.

    Of unknown size (None), all pixels may be any number that an image may have.
    """
    if size:
        return measure_lib.COUNTS[measure["measure"]](*size)
    whole = [count for count in _listed(measure.get("count", [])) if count >= _SMALLEST]
    return [4**power for power in range(8)] + whole


def _config(study: Study, attack: str, variant: str) -> AttackConfig:
    fields = study.attack_fields(attack, variant, study.seeds[0])
    return AttackConfig(ckpt="-", **fields)


def _tasks(study: Study, config: AttackConfig, variant: str) -> tuple[str, ...]:
    """Those that the attack looks at, in the model's order."""
    has = study.names(study.train_config(variant, study.seeds[0]).tasks)
    chosen = study.names(config.tasks) if config.tasks else has
    return tuple(task for task in has if task in chosen)
