# SPDX-License-Identifier: Apache-2.0
"""Results of several models side by side: the attacks that they share, and tables."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging

from mtr_tf import files
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.settings import shortened
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.runs import remote
from mtr_tf.runs import store
from mtr_tf.show import curves
from mtr_tf.show import style
from mtr_tf.show import tables
from mtr_tf.show.text import markdown as escaped
from mtr_tf.show.text import plain

Record = Mapping[str, Any]

# What two attacks must have in common to be one attack on two models.
SAME = (
    "attack",
    "norm",
    "steps",
    "restarts",
    "random_start",
    "loss",
    "balance",
    "judge",
    "weights",
    "targeted",
    "ensemble",
    "queries",
    "eot",
    "spare",
    "attack_pixels",
    "attack_block",
    "attack_classes",
    "attack_channels",
    "source_fingerprint",
    "fast",
    "targets",
    "dataset",
    "split",
    "n",
)


# The values of settings that records of older versions lack.
_DEFAULTS = {"attack_channels": [], "fast": False, "targets": "data"}
_MEAN_TOLERANCE = 1e-4  # Between means of the same images on two machines.
# The fields that differ between models from the same run or file.
_MODEL_FIELDS = ("model_fingerprint", "precision", "input")


@dataclasses.dataclass(frozen=True)
class Model:
    """The finished attacks on one model.

    Attributes:
      label: Its name in tables.
      path: Its name as the user gave it.
      attacks: {settings, the values of SAME as text: records}.
    """

    label: str
    path: str
    attacks: Mapping[tuple[str, ...], Sequence[Record]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one task holds up in each model under the same attack on it alone.

    Attributes:
      task: The task.
      facts: One of the records, for what all have in common.
      points: {label of a model: [(eps, value, low, high)]}, first the clean value at
        eps 0.
    """

    task: str
    facts: Record
    points: Mapping[str, Sequence[tuple[float, float | None, Any, Any]]]

    @property
    def title(self) -> str:
        """What is compared, in words."""
        facts = self.facts
        unit = f" [{facts['unit']}]" if facts.get("unit") else ""
        better = f", {facts['better']} is better" if facts.get("better") else ""
        return (
            f"{self.task} {facts['metric']}{unit}{better}: {facts['attack']} on "
            f"{self.task} alone ({_setup(facts)}; {facts['n']} images "
            f"of {facts['dataset']} {facts['split']}; 95 % intervals over "
            f"{facts.get('interval_over', 'images')})"
        )

    def rows(self) -> list[list[str]]:
        """A head, and a row for each radius with a cell for each model."""
        radii = sorted({eps for line in self.points.values() for eps, *_ in line})
        columns = [
            {eps: _cell(value, ends) for eps, value, *ends in line}
            for line in self.points.values()
        ]
        rows = [["eps", *self.points]]
        for eps in radii:
            cells = (column.get(eps, "-") for column in columns)
            rows.append([f"{eps:g}" if eps else "clean", *cells])
        return rows

    def records(self) -> list[dict[str, Any]]:
        """A record for each model and radius."""
        metric = self.facts["metric"]
        common = {name: _setting(self.facts, name) for name in SAME}
        common |= {name: self.facts.get(name, "") for name in ("unit", "better")}
        return [
            {"model": label, "task": self.task, "metric": metric, "eps": eps}
            | {"value": value, "low": low, "high": high}
            | common
            for label, line in self.points.items()
            for eps, value, low, high in line
        ]

    def figure(self):
        """A line for each model."""
        lines = [
            curves.from_points(label, points, style.look(place))
            for place, (label, points) in enumerate(self.points.items())
        ]
        title = f"{self.task} under {self.facts['attack']} on {self.task} alone"
        title = "; ".join([title, *details(self.facts)])
        return curves.of_variants(title, lines, self.facts)


def _setup(facts: Record) -> str:
    """An attack's norm, unit of radii, steps, restarts and `details`, in words."""
    norm = facts["norm"]
    parts = [f"{norm}, eps: {style.unit_of(norm)}", *effort(facts), *details(facts)]
    return "; ".join(parts)


def effort(facts: Record) -> list[str]:
    """Phrases for an attack's steps and restarts."""
    restarts = facts.get("restarts") or 1
    parts = [f"{facts['steps']} steps"] if facts.get("steps") else []
    return [*parts, f"{restarts} restarts"] if restarts > 1 else parts


def details(facts: Record) -> list[str]:
    """Phrases for what is unusual about an attack and is not in its name.

    With the name, norm, steps and restarts, they distinguish any two attacks that
    differ in SAME.
    """
    parts = []
    kind, start = KINDS.get(facts.get("algorithm", "")), facts.get("random_start")
    if kind and start not in (
        None,
        kind.start_at_random(None, facts.get("restarts") or 1),
    ):
        parts.append(f"from {'a random point' if start else 'the image'}")
    if facts.get("weights"):
        weights = (f"{task}:{number}" for task, number in facts["weights"].items())
        parts.append(f"weights {', '.join(weights)}")
    if facts.get("ensemble"):
        queries = f", {facts['queries']} queries" if facts.get("queries") else ""
        parts.append(f"the worst of {', '.join(facts['ensemble'])}{queries}")
    if facts.get("attack_pixels"):
        parts.append(f"{facts['attack_pixels']} output pixels attacked")
    if facts.get("attack_block"):
        sides = list(map(str, facts["attack_block"]))
        block = "+".join(["x".join(sides[:2]), *sides[2:]])
        parts.append(f"output pixels {block} attacked")
    if facts.get("attack_classes"):
        numbers = ", ".join(map(str, facts["attack_classes"]))
        parts.append(f"only pixels of the classes numbered {numbers} attacked")
    if facts.get("source_fingerprint"):
        parts.append(f"by transfer from model {facts['source_fingerprint'][:8]}")
    if facts.get("fast"):
        dtype = "bfloat16" if facts["fast"] is True else facts["fast"]
        parts.append(f"gradients in {dtype} (--fast)")
    if _setting(facts, "targets") == "own":
        parts.append("against the model's own clean outputs")
    return parts


def read(paths: Sequence[str], name: str = "") -> list[Model]:
    """The finished attacks on some models.

    Args:
      paths: Run directories, .keras files, or folders of results of an attack.
      name: Only RUN/attacks/NAME; empty: all.

    Raises:
      InputError: A path does not exist, has no finished attack, or a damaged one.
    """
    labels = labels_of(paths)
    return [
        Model(label, path, _attacks(path, name))
        for label, path in zip(labels, paths, strict=True)
    ]


def compare(
    models: Sequence[Model],
    attacks: Sequence[str] = (),
    tasks: Sequence[str] = (),
    metric: str = "",
) -> list[Comparison]:
    """The comparisons that the models allow.

    Args:
      models: At least one.
      attacks: Names of attacks; empty: all that all models share.
      tasks: Names of tasks; empty: all that were attacked alone in all models.
      metric: Of each task; empty: the headline metric, the first one in the records.

    Raises:
      InputError: The models have no such attack in common.
    """
    _check_attack_names(models, attacks)
    shared_settings = [
        settings
        for settings in models[0].attacks
        if all(settings in model.attacks for model in models)
        and (not attacks or settings[0] in attacks)
    ]
    if not shared_settings:
        raise InputError(_difference(models, attacks))
    task_names = tasks or _tasks_alone(models, shared_settings)
    comparisons = [
        comparison
        for settings in shared_settings
        for task in task_names
        if (comparison := _comparison(models, settings, task, metric))
    ]
    if not comparisons:
        raise InputError(_empty_reason(models, shared_settings, tasks, metric))
    return comparisons


def _empty_reason(
    models: Sequence[Model],
    shared_settings: Sequence[tuple],
    tasks: Sequence[str],
    metric: str,
) -> str:
    """The message that says why there is nothing to compare, and what there is."""
    candidates = _tasks_alone(models, shared_settings)
    missing = [task for task in tasks if task not in candidates]
    if missing or not candidates:
        return (
            f"{', '.join(missing) or 'A task'} must have been attacked alone in all "
            f"runs to be compared, but only {', '.join(candidates) or 'none'} was; run "
            f"mtr_tf.attack with --attack_tasks={missing[0] if missing else 'each'}."
        )
    if not metric:
        return (
            f"the metric that {models[0].path} has first is not in the results of all "
            "models; choose one that all have with --metric, or attack them with the "
            "same --metrics."
        )
    metrics = dict.fromkeys(
        record["metric"]
        for settings in shared_settings
        for record in models[0].attacks[settings]
        if record["task"] in (tasks or candidates)
    )
    return (
        f"--metric must be one of {', '.join(metrics)}, got {metric!r}."
        f"{did_you_mean(metric, metrics)}"
    )


def joint_rows(records: Sequence[Record]) -> list[list[str]]:
    """Each task's rise in loss under a joint attack, relative to an attack on it alone.

    Returns a head, and a row for each radius and group of tasks attacked together; only
    the head if there is no joint attack.
    """
    rises = {
        (r["eps"], tuple(r["attacked"]), r["task"]): r["attacked_value"] - r["clean"]
        for r in records
        if r["metric"] == "loss" and None not in (r["attacked_value"], r["clean"])
    }
    tasks = list(dict.fromkeys(task for *_, task in rises))
    groups = list(dict.fromkeys(group for _, group, _ in rises if len(group) > 1))
    rows = [["eps", "attacked together", *tasks]]
    for eps in sorted({eps for eps, *_ in rises if eps}):
        for group in groups:
            row = [f"{eps:g}", "+".join(group)]
            for task in tasks:
                joint_rise = rises.get((eps, group, task))
                single_rise = rises.get((eps, (task,), task))
                has_ratio = task in group and joint_rise is not None and single_rise
                row.append(f"{joint_rise / single_rise:.2f}" if has_ratio else "-")
            rows.append(row)
    return rows


# Reading.


def _attacks(path: str, name: str) -> dict[tuple[str, ...], list[Record]]:
    """{settings: newest records} of a model's finished attacks.

    If pictures had several sizes, only records of the newest size are taken.
    """
    pairs = [
        (_settings_key(record), record)
        for file in result_files(path, name)
        for record in _records(file)
        if record["eps"]
    ]
    newest_sizes = {settings: size for settings, r in pairs if (size := size_of(r))}
    by_settings: dict[tuple[str, ...], dict[tuple, Record]] = {}
    older_sizes = set()
    for settings, record in pairs:
        if (size := size_of(record)) not in ("", newest_sizes.get(settings)):
            older_sizes.add(size)
            continue
        by_key = by_settings.setdefault(settings, {})
        by_key.pop(_record_key(record), None)  # The newest come last.
        by_key[_record_key(record)] = record
    if older_sizes:
        logging.warning(
            "%s was attacked at several sizes of pictures; left out where there is a "
            "newer attack: %s (choose with --name)",
            path,
            ", ".join(sorted(older_sizes)),
        )
    if not by_settings:
        raise InputError(
            f"{path} has no attack with a radius above 0 in its results; attack it "
            "with another --eps."
        )
    return {settings: list(by_key.values()) for settings, by_key in by_settings.items()}


def _records(file: pathlib.Path) -> list[Record]:
    """The records of a file of results; raises `InputError` for a damaged one."""
    try:
        records = files.read_json(file)
        for number, record in enumerate(records, start=1):
            _check(record, number)
        return records
    except files.DAMAGED as error:
        raise InputError(
            f"{file} is damaged ({type(error).__name__}: {files.reason(error)}); "
            "repeat the attack to write it again."
        ) from error


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number, or None: JSON's null for a missing one."""
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_text_list(value: Any) -> bool:
    """Whether `value` is a list of texts."""
    return isinstance(value, list) and all(map(_is_text, value))


def _is_images(value: Any) -> bool:
    """Whether `value` is the size of images followed by means; see `cell_store`."""
    if not _is_text(value):
        return False
    try:
        return all(map(math.isfinite, _means({"images": value})))
    except ValueError:
        return False


# {field that is read from a record: check of its value}.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("attack", "task", "metric", "norm", "dataset", "split"), _is_text),
    "n": lambda value: type(value) is int,
    "eps": lambda value: value is not None and _is_number(value),
    "attacked": is_text_list,
    **dict.fromkeys(("clean", "attacked_value"), _is_number),
    **dict.fromkeys(("clean_interval", "attacked_interval"), _is_interval),
}
# The same for optional fields.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("algorithm", "source_fingerprint"), _is_text),
    "images": _is_images,
    "restarts": lambda value: type(value) is int,
    "weights": lambda value: isinstance(value, dict),
    "ensemble": is_text_list,
    **dict.fromkeys(
        ("attack_block", "attack_classes"), lambda value: isinstance(value, list)
    ),
}


def _check(record: Record, number: int) -> None:
    """Raises `LookupError` or `ValueError` unless `record` is a valid record."""
    optional = {
        field: is_valid
        for field, is_valid in _OPTIONAL.items()
        if record.get(field) is not None
    }
    for name, is_valid in (_FIELDS | optional).items():
        if not is_valid(record[name]):
            value_text = shortened(record[name])
            raise ValueError(f"{name} of record {number} is {value_text}")


def result_files(path: str, name: str = "") -> list[pathlib.Path]:
    """The files of results of a model's finished attacks, the oldest first.

    If the attacks in a folder are on different weights, for example of a checkpoint, or
    in different precisions, only those like the newest are taken, with a warning.

    Args:
      path: A run directory, .keras file, or folder of results of an attack.
      name: Only RUN/attacks/NAME; empty: all.

    Raises:
      InputError: The path does not exist, or has no finished attack.
    """
    run = remote.fetched_results(path, "--runs")
    if (run / "results.json").is_file():
        return [run / "results.json"]
    if run.suffix == ".keras":
        run = _results_folder(run)
    if not run.is_dir():
        raise InputError(
            f"--runs must name run directories, but {path!r} "
            f"{'is a file' if run.exists() else 'does not exist'}."
        )
    result_paths = {
        folder.name: folder / "results.json"
        for folder in files.listed(run / "attacks")
        if (folder / "results.json").exists()
    }
    if name and name not in result_paths:
        raise InputError(
            f"--name must be a finished attack of {path} "
            f"({', '.join(result_paths) or 'there are none'}); got "
            f"{name!r}.{did_you_mean(name, result_paths)}"
        )
    if not result_paths:
        unfinished = ", ".join(folder.name for folder in files.listed(run / "attacks"))
        raise InputError(
            f"{path} has no finished attack"
            f"{unfinished and f' (only unfinished: {unfinished})'}; "
            f"run python -m mtr_tf.attack --ckpt={path} first."
        )
    chosen_paths = [result_paths[name]] if name else list(result_paths.values())
    return _newest_model_files(
        path, sorted(chosen_paths, key=lambda file: file.stat().st_mtime)
    )


def _newest_model_files(path: str, paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The files that are of the same model as the last one, with a warning.

    If some are on a fully trained model, the last of those decides instead, because
    copying changes the times, and so the order, of files.
    """
    models = [_model_identity(file) for file in paths]
    steps = [_setting_of(file.parent, "checkpoint_step") for file in paths]
    complete_attacks = [index for index, step in enumerate(steps) if step is None]
    newest_index = max(complete_attacks, default=len(paths) - 1)
    is_newest = [_may_be_same(model, models[newest_index]) for model in models]
    pairs = list(zip(paths, is_newest, strict=True))
    other_names = [file.parent.name for file, newest in pairs if not newest]
    if other_names:
        logging.warning(
            "%s has attacks on other weights, or in another precision or input range, "
            "than the newest, %s; left out: %s (choose them with --name)",
            path,
            paths[newest_index].parent.name,
            ", ".join(other_names),
        )
    return [file for file, newest in pairs if newest]


def _model_identity(file: pathlib.Path) -> Mapping[str, Any]:
    """The fields that identify the model of results; empty where unknown."""
    try:
        record = files.read_json(file)[0]
        return {name: record[name] for name in _MODEL_FIELDS if name in record}
    except files.DAMAGED:  # Reported where the file is read.
        return {}


def _may_be_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two models may be the same; older versions stored fewer fields."""
    if "precision" in first and "precision" in second:
        return first == second
    fingerprints = [model.get("model_fingerprint") for model in (first, second)]
    return None in fingerprints or fingerprints[0] == fingerprints[1]


def _results_folder(file: pathlib.Path) -> pathlib.Path:
    """The folder with the results of attacks on a user's own model."""
    folders = [
        folder
        for folder in files.listed(pathlib.Path("runs"))
        if folder.name.rpartition("-")[0] == file.stem and _has_attack_on(file, folder)
    ]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise InputError(
            f"runs/ has no attack results for {file}; run python -m mtr_tf.attack "
            f"--ckpt={file} first."
        )
    raise InputError(
        f"there are results for several versions of {file}: "
        f"{', '.join(map(str, folders))}; name one of these folders in --runs."
    )


def _has_attack_on(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether some attack in a folder is on the present version of a model's file.

    True if no attack has stored the file's digest, as none did until version 0.2.
    """
    attacks = files.listed(folder / "attacks")
    digests = {_setting_of(attack, "ckpt_sha256") for attack in attacks} - {None}
    return not digests or not file.is_file() or store.file_digest(file) in digests


def _setting_of(attack: pathlib.Path, name: str) -> Any:
    """A value in an attack's settings.json; None if it is not there."""
    return files.read_object(attack / "settings.json").get(name)


def labels_of(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [pathlib.Path(path).parts or (path,) for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    if not paths:
        return []
    raise InputError(
        f"--runs must all be different, but one of {', '.join(paths)} is given twice."
    )


def _settings_key(record: Record) -> tuple[str, ...]:
    return tuple(str(_setting(record, name)) for name in SAME)


def _setting(record: Record, name: str) -> Any:
    return record.get(name, _DEFAULTS.get(name))


def _record_key(record: Record) -> tuple:
    return record["eps"], tuple(record["attacked"]), record["task"], record["metric"]


# Comparing.


def _check_attack_names(models: Sequence[Model], attacks: Iterable[str]) -> None:
    for model in models:
        names = sorted({settings[0] for settings in model.attacks})
        for attack in attacks:
            if attack not in names:
                raise InputError(
                    f"{model.path} has no attack {attack!r}, only {', '.join(names)}; "
                    f"choose among these with --attack.{did_you_mean(attack, names)}"
                )


def _difference(models: Sequence[Model], attacks: Sequence[str]) -> str:
    """The message that says how the most similar attacks on two models differ."""
    candidates = [
        (m.path, {s for s in m.attacks if not attacks or s[0] in attacks})
        for m in models
    ]
    pairs = itertools.combinations(candidates, 2)
    disjoint_pairs = [pair for pair in pairs if not pair[0][1] & pair[1][1]]
    if not disjoint_pairs:
        return (
            "Runs can be compared only if all were attacked with the same settings, "
            "but each attack is missing in the results of one of "
            f"{', '.join(path for path, _ in candidates)}; repeat one there, or "
            "compare fewer runs."
        )
    (path, path_settings), (other_path, other_settings) = disjoint_pairs[0]
    _, first, second = min(
        (sum(a != b for a, b in zip(first, second, strict=True)), first, second)
        for first in path_settings
        for second in other_settings
        if not attacks or first[0] == second[0]
    )
    differences = [
        f"{name} is {a} in {path} and {b} in {other_path}"
        for name, a, b in zip(SAME, first, second, strict=True)
        if a != b
    ]
    return (
        "Runs can be compared only if they were attacked with the same settings, but "
        f"{'; '.join(differences)}. Repeat one attack with the other's settings."
    )


def _tasks_alone(
    models: Sequence[Model], shared_settings: Sequence[tuple]
) -> list[str]:
    """The tasks that were attacked alone in all models, in the first one's order.

    The settings must be the same in all: a task that each model saw attacked with other
    settings is left out.
    """
    by_model = [
        dict.fromkeys(
            (settings, record["task"])
            for settings in shared_settings
            for record in model.attacks[settings]
            if record["attacked"] == [record["task"]]
        )
        for model in models
    ]
    common_ways = [way for way in by_model[0] if all(way in ways for ways in by_model)]
    return list(dict.fromkeys(task for _, task in common_ways))


def _comparison(
    models: Sequence[Model], settings: tuple[str, ...], task: str, metric: str
) -> Comparison | None:
    """The comparison of a task; None if a model lacks the results."""
    points, facts = {}, None
    name = metric
    for model in models:
        task_records = [
            record
            for record in model.attacks[settings]
            if record["attacked"] == [task] and record["task"] == task
        ]
        name = name or (task_records[0]["metric"] if task_records else "")
        matches = [record for record in task_records if record["metric"] == name]
        if not matches:
            return None
        facts = facts or matches[0]
        _check_comparable(facts, models[0].label, matches[0], model.label)
        points[model.label] = curves.points_of(matches)
    return Comparison(task, facts, points) if facts else None


def _check_comparable(
    first: Record, first_label: str, second: Record, second_label: str
) -> None:
    """Raises `InputError` unless two models were judged in the same way.

    Pictures of different sizes only cause a warning.
    """
    task = first["task"]
    if first.get("unit") != second.get("unit"):
        raise InputError(
            f"{task} is not in the same unit in all models: {first.get('unit')!r} "
            f"in {first_label}, {second.get('unit')!r} in {second_label}; "
            "compare models with the same targets, or leave this task out with "
            "--task."
        )
    if first.get("ignored") != second.get("ignored"):
        ignored = [record.get("ignored", "none") for record in (first, second)]
        raise InputError(
            f"{task} must be judged by the same classes in all models, but the "
            f"numbers of those left out are {ignored[0]} in {first_label} and "
            f"{ignored[1]} in {second_label}; attack both on the same data (and "
            "again what an earlier version attacked, which did not say them), or leave "
            "this task out with --task."
        )
    if other_images(first, second):
        raise InputError(
            f"{first_label} and {second_label} were attacked on other images "
            f"of {first['dataset']} {first['split']}; attack both on the same."
        )
    if other_size(first, second):
        logging.warning(
            "%s: pictures are %s in %s and %s in %s; a radius is not the same at "
            "another size",
            task,
            size_of(first),
            first_label,
            size_of(second),
            second_label,
        )


def other_images(first: Record, second: Record) -> bool:
    """Whether two records of images of one size are of different images.

    False if the sizes differ or a record lacks the means of its images.
    """
    means = [_means(record) for record in (first, second)]
    if not all(means) or other_size(first, second):
        return False
    return any(abs(a - b) > _MEAN_TOLERANCE for a, b in zip(*means, strict=True))


def size_of(record: Record) -> str:
    """Height x width of a record's images; empty where the record lacks it."""
    size = str(record.get("images", "")).partition(" ")[0]
    return "x".join(size.split("x")[:2])


def other_size(first: Record, second: Record) -> bool:
    """Whether the pictures of two records differ in size, if both have a size."""
    sizes = size_of(first), size_of(second)
    return all(sizes) and sizes[0] != sizes[1]


def _means(record: Record) -> list[float]:
    """The means of a record's images."""
    return [float(mean) for mean in str(record.get("images", "")).split(" ")[1:]]


def _cell(value: float | None, ends: Sequence[float | None]) -> str:
    if value is None:  # JSON's null for what is not a number.
        return "-"
    if None in ends:
        return plain(value)
    return f"{plain(value)} ({'-'.join(map(plain, ends))})"


def text(comparisons: Sequence[Comparison], models: Sequence[Model]) -> str:
    """All tables as plain text."""
    parts = [
        f"{title}\n\n{tables.aligned(rows, 'r')}"
        for title, rows in _all_tables(comparisons, models)
    ]
    return "\n\n".join([*parts, _CAUTION])


def markdown(comparisons: Sequence[Comparison], models: Sequence[Model]) -> str:
    """All tables as Markdown."""
    parts = [
        f"**{escaped(title)}**\n\n{tables.markdown(rows)}"
        for title, rows in _all_tables(comparisons, models)
    ]
    return "\n\n".join([*parts, _CAUTION])


_JOINT_TITLE = "rise of each task's loss, attacked together / attacked alone"
_CAUTION = (
    "One training run per model says nothing about the method: with another seed the\n"
    "order may be reversed. Intervals cover the choice of images, not of "
    "seeds."
)


def _all_tables(
    comparisons: Sequence[Comparison], models: Sequence[Model]
) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) of the comparisons, and of the joint attacks that models have."""
    shared_settings = dict.fromkeys(
        _settings_key(comparison.facts) for comparison in comparisons
    )
    titled_rows = [(comparison.title, comparison.rows()) for comparison in comparisons]
    for settings in shared_settings:
        for model in models:
            for records in _joint_records(model.attacks, settings, shared_settings):
                rows, facts = joint_rows(records), records[-1]
                if len(rows) > 1:
                    attack = f"{facts['attack']} ({_setup(facts)})"
                    titled_rows.append(
                        (f"{model.label}, {attack}: {_JOINT_TITLE}", rows)
                    )
    return titled_rows


def _joint_records(
    attacks: Mapping[tuple[str, ...], Sequence[Record]],
    settings: tuple[str, ...],
    shared_keys: Iterable[tuple[str, ...]],
) -> list[list[Record]]:
    """The records of an attack; then those on single tasks with each joint attack's.

    An attack on one task has neither balance nor weights. So a joint attack that has
    them differs in its settings and its name, but belongs to the same attack on single
    tasks.
    """
    members = list(attacks[settings])
    alone_records = [record for record in members if len(record["attacked"]) == 1]
    groups = [members]
    for key, records in attacks.items():
        if key not in shared_keys and _base_key(records[0]) == _base_key(members[0]):
            groups.append([*alone_records, *records])
    return groups


def _base_key(record: Record) -> tuple[str, ...]:
    """The settings of an attack without those that only joint attacks have."""
    algorithm = record.get("algorithm") or record["attack"].partition("-")[0]
    joint_only = ("attack", "balance", "weights")
    settings = [str(_setting(record, name)) for name in SAME if name not in joint_only]
    return (algorithm, *settings)
