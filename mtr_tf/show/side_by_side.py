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


# What holds of records that do not say, as those of older versions.
_UNSAID = {"attack_channels": [], "fast": False, "targets": "data"}
_CLOSE = 1e-4  # Means of images that may be the same, on other machines.
# What makes another model of one run or file.
_MODEL = ("model_fingerprint", "precision", "input")


@dataclasses.dataclass(frozen=True)
class Model:
    """The finished attacks on one model.

    Attributes:
      label: What tables call it.
      path: What the user calls it.
      attacks: By settings, values of SAME as text, the records.
    """

    label: str
    path: str
    attacks: Mapping[tuple[str, ...], Sequence[Record]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one task holds up in each model when it alone is attacked, in one way.

    Attributes:
      task: The task.
      facts: One of the records, for what all have in common.
      points: By model's label: (eps, value, low, high), the clean one at eps 0 first.
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
            f"{self.task} alone ({_how(facts)}; {facts['n']} images "
            f"of {facts['dataset']} {facts['split']}; 95 % intervals over "
            f"{facts.get('interval_over', 'images')})"
        )

    def rows(self) -> list[list[str]]:
        """A head, and a row for each radius with a cell for each model."""
        radii = sorted({eps for line in self.points.values() for eps, *_ in line})
        rows = [["eps", *self.points]]
        for eps in radii:
            row = [f"{eps:g}" if eps else "clean"]
            for line in self.points.values():
                cells = {at: _cell(value, ends) for at, value, *ends in line}
                row.append(cells.get(eps, "-"))
            rows.append(row)
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


def _how(facts: Record) -> str:
    """An attack's norm and unit of radii, steps, restarts and `details`, in words."""
    norm, restarts = facts["norm"], facts.get("restarts") or 1
    parts = [f"{norm}, eps: {style.unit_of(norm)}"]
    parts += [f"{facts['steps']} steps"] if facts.get("steps") else []
    parts += [f"{restarts} restarts"] if restarts > 1 else []
    return "; ".join([*parts, *details(facts)])


def details(facts: Record) -> list[str]:
    """What is not as usual about an attack and is not in its name, a phrase each.

    With the name, the norm, the steps and the restarts it tells any two attacks apart
    that differ in SAME.
    """
    parts = []
    kind, starts = KINDS.get(facts.get("algorithm", "")), facts.get("random_start")
    if kind and starts not in (
        None,
        kind.start_at_random(None, facts.get("restarts") or 1),
    ):
        parts.append(f"from {'a random point' if starts else 'the image'}")
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
        half = "bfloat16" if facts["fast"] is True else facts["fast"]
        parts.append(f"gradients in {half} (--fast)")
    if _setting(facts, "targets") == "own":
        parts.append("against the model's own clean outputs")
    return parts


def read(paths: Sequence[str], name: str = "") -> list[Model]:
    """The finished attacks on some models.

    Args:
      paths: Run directories, .keras files, or folders of results of an attack.
      name: Only RUN/attacks/NAME; empty: all.

    Raises:
      InputError: there is no such thing, no finished attack, or a damaged one.
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
      metric: Of each task; empty: the headline, the first that records have.

    Raises:
      InputError: the models have no such attack in common.
    """
    _check_named(models, attacks)
    shared = [
        settings
        for settings in models[0].attacks
        if all(settings in model.attacks for model in models)
        and (not attacks or settings[0] in attacks)
    ]
    if not shared:
        raise InputError(_difference(models, attacks))
    chosen = tasks or _tasks_alone(models, shared)
    found = []
    for settings in shared:
        for task in chosen:
            one = _comparison(models, settings, task, metric)
            if one:
                found.append(one)
    if not found:
        raise InputError(_nothing(models, shared, tasks, metric))
    return found


def _nothing(
    models: Sequence[Model], shared: Sequence[tuple], tasks: Sequence[str], metric: str
) -> str:
    """Why there is nothing to compare, and what there is."""
    alone = _tasks_alone(models, shared)
    missing = [task for task in tasks if task not in alone]
    if missing or not alone:
        return (
            f"{', '.join(missing) or 'A task'} must have been attacked alone in all "
            f"runs to be compared, but only {', '.join(alone) or 'none'} was; run "
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
        for settings in shared
        for record in models[0].attacks[settings]
        if record["task"] in (tasks or alone)
    )
    return (
        f"--metric must be one of {', '.join(metrics)}, got {metric!r}."
        f"{did_you_mean(metric, metrics)}"
    )


def joint_rows(records: Sequence[Record]) -> list[list[str]]:
    """How much of its rise in loss under an attack on it alone each task suffers.

    A head, and a row for each radius and group of tasks attacked together; only the
    head where there is none.
    """
    losses = {
        (r["eps"], tuple(r["attacked"]), r["task"]): r["attacked_value"] - r["clean"]
        for r in records
        if r["metric"] == "loss" and None not in (r["attacked_value"], r["clean"])
    }
    tasks = list(dict.fromkeys(task for *_, task in losses))
    groups = list(dict.fromkeys(group for _, group, _ in losses if len(group) > 1))
    rows = [["eps", "attacked together", *tasks]]
    for eps in sorted({eps for eps, *_ in losses if eps}):
        for group in groups:
            row = [f"{eps:g}", "+".join(group)]
            for task in tasks:
                joint = losses.get((eps, group, task))
                alone = losses.get((eps, (task,), task))
                known = task in group and joint is not None and alone
                row.append(f"{joint / alone:.2f}" if known else "-")
            rows.append(row)
    return rows


# Reading.


def _attacks(path: str, name: str) -> dict[tuple[str, ...], list[Record]]:
    """By settings, the records of a model's finished attacks, the newest of each.

    Of pictures of several sizes, only those of the newest size.
    """
    found = [
        (_settings(record), record)
        for file in result_files(path, name)
        for record in _records(file)
        if record["eps"]
    ]
    newest = {settings: size for settings, r in found if (size := size_of(r))}
    by_settings: dict[tuple[str, ...], dict[tuple, Record]] = {}
    older = set()
    for settings, record in found:
        if (size := size_of(record)) not in ("", newest.get(settings)):
            older.add(size)
            continue
        kept = by_settings.setdefault(settings, {})
        kept.pop(_place(record), None)  # The newest come last.
        kept[_place(record)] = record
    if older:
        logging.warning(
            "%s was attacked at several sizes of pictures; left out where there is a "
            "newer attack: %s (choose with --name)",
            path,
            ", ".join(sorted(older)),
        )
    if not by_settings:
        raise InputError(
            f"{path} has no attack with a radius above 0 in its results; attack it "
            "with another --eps."
        )
    return {settings: list(kept.values()) for settings, kept in by_settings.items()}


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


def _number(value: Any) -> bool:
    """Whether it is a number or none, as JSON has them where they do not exist."""
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _images(value: Any) -> bool:
    """Whether it is a size of images, and their means behind it; see `cell_store`."""
    if not _text(value):
        return False
    try:
        return all(map(math.isfinite, _means({"images": value})))
    except ValueError:
        return False


# What is read of a record, and what it must be.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "attack": _text,
    "task": _text,
    "metric": _text,
    "norm": _text,
    "dataset": _text,
    "split": _text,
    "n": lambda value: type(value) is int,
    "eps": lambda value: value is not None and _number(value),
    "attacked": lambda value: isinstance(value, list) and all(map(_text, value)),
    "clean": _number,
    "attacked_value": _number,
    "clean_interval": _interval,
    "attacked_interval": _interval,
}
# The same of what records may lack.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("algorithm", "source_fingerprint"), _text),
    "images": _images,
    "restarts": lambda value: type(value) is int,
    "weights": lambda value: isinstance(value, dict),
    "ensemble": lambda value: isinstance(value, list) and all(map(_text, value)),
    **dict.fromkeys(
        ("attack_block", "attack_classes"), lambda value: isinstance(value, list)
    ),
}


def _check(record: Record, number: int) -> None:
    """Raises `LookupError` or `ValueError` for what is no record."""
    said = {n: fits for n, fits in _OPTIONAL.items() if record.get(n) is not None}
    for name, fits in (_FIELDS | said).items():
        if not fits(record[name]):
            shown = shortened(record[name])
            raise ValueError(f"{name} of record {number} is {shown}")


def result_files(path: str, name: str = "") -> list[pathlib.Path]:
    """The files of results of a model's finished attacks, the oldest first.

    Of those on other weights in the same folder, say of a checkpoint, or in another
    precision, only those on the newest are taken, and it is said which are not.

    Args:
      path: A run directory, .keras file, or folder of results of an attack.
      name: Only RUN/attacks/NAME; empty: all.

    Raises:
      InputError: there is no such thing, or no finished attack.
    """
    run = remote.fetched_results(path, "--runs")
    if (run / "results.json").is_file():
        return [run / "results.json"]
    if run.suffix == ".keras":
        run = _of_file(run)
    if not run.is_dir():
        raise InputError(
            f"--runs must name run directories, but {path!r} "
            f"{'is a file' if run.exists() else 'does not exist'}."
        )
    finished = {
        folder.name: folder / "results.json"
        for folder in files.listed(run / "attacks")
        if (folder / "results.json").exists()
    }
    if name and name not in finished:
        raise InputError(
            f"--name must be a finished attack of {path} "
            f"({', '.join(finished) or 'there are none'}); got "
            f"{name!r}.{did_you_mean(name, finished)}"
        )
    if not finished:
        begun = ", ".join(folder.name for folder in files.listed(run / "attacks"))
        raise InputError(
            f"{path} has no finished attack{begun and f' (only unfinished: {begun})'}; "
            f"run python -m mtr_tf.attack --ckpt={path} first."
        )
    chosen = [finished[name]] if name else list(finished.values())
    return _of_newest(path, sorted(chosen, key=lambda file: file.stat().st_mtime))


def _of_newest(path: str, found: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Those of the files that are of the same model as the last one.

    Or as the last one on a whole model, where there are some: times of files are those
    of a copy after a copy.
    """
    models = [_model(file) for file in found]
    steps = [_settings_of(file.parent).get("checkpoint_step") for file in found]
    whole = [place for place, step in enumerate(steps) if step is None]
    last = max(whole, default=len(found) - 1)
    of_newest = [_may_be_one(model, models[last]) for model in models]
    pairs = list(zip(found, of_newest, strict=True))
    others = [file.parent.name for file, its in pairs if not its]
    if others:
        logging.warning(
            "%s has attacks on other weights, or in another precision or input range, "
            "than the newest, %s; left out: %s (choose them with --name)",
            path,
            found[last].parent.name,
            ", ".join(others),
        )
    return [file for file, its in pairs if its]


def _model(file: pathlib.Path) -> Mapping[str, Any]:
    """What tells the model of results; empty where that is not known."""
    try:
        record = files.read_json(file)[0]
        return {name: record[name] for name in _MODEL if name in record}
    except files.DAMAGED:  # What reads it says so.
        return {}


def _may_be_one(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether nothing says that two models differ; older versions said less."""
    if "precision" in one and "precision" in other:
        return one == other
    prints = [its.get("model_fingerprint") for its in (one, other)]
    return None in prints or prints[0] == prints[1]


def _of_file(file: pathlib.Path) -> pathlib.Path:
    """The folder with the results of attacks on a model of one's own."""
    made = [
        folder
        for folder in files.listed(pathlib.Path("runs"))
        if folder.name.rpartition("-")[0] == file.stem and _is_of(file, folder)
    ]
    if len(made) == 1:
        return made[0]
    if not made:
        raise InputError(
            f"runs/ has no attack results for {file}; run python -m mtr_tf.attack "
            f"--ckpt={file} first."
        )
    raise InputError(
        f"there are results for several versions of {file}: "
        f"{', '.join(map(str, made))}; name one of these folders in --runs."
    )


def _is_of(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether some attack in a folder is on a model's file as it is now.

    So it is taken to be where no attack says: until 0.2 none did.
    """
    made = [_settings_of(attack) for attack in files.listed(folder / "attacks")]
    known = {one["ckpt_sha256"] for one in made if "ckpt_sha256" in one}
    return not known or not file.is_file() or store.file_digest(file) in known


def _settings_of(attack: pathlib.Path) -> Mapping[str, Any]:
    """What is in an attack's settings.json; empty where there is none."""
    return files.read_object(attack / "settings.json")


def labels_of(paths: Sequence[str]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
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


def _settings(record: Record) -> tuple[str, ...]:
    return tuple(str(_setting(record, name)) for name in SAME)


def _setting(record: Record, name: str) -> Any:
    return record.get(name, _UNSAID.get(name))


def _place(record: Record) -> tuple:
    return record["eps"], tuple(record["attacked"]), record["task"], record["metric"]


# Comparing.


def _check_named(models: Sequence[Model], attacks: Iterable[str]) -> None:
    for model in models:
        known = sorted({settings[0] for settings in model.attacks})
        for attack in attacks:
            if attack not in known:
                raise InputError(
                    f"{model.path} has no attack {attack!r}, only {', '.join(known)}; "
                    f"choose among these with --attack.{did_you_mean(attack, known)}"
                )


def _difference(models: Sequence[Model], attacks: Sequence[str]) -> str:
    """In which settings the attacks on two models differ that are most alike."""
    found = [
        (m.path, {s for s in m.attacks if not attacks or s[0] in attacks})
        for m in models
    ]
    pairs = itertools.combinations(found, 2)
    apart = [pair for pair in pairs if not pair[0][1] & pair[1][1]]
    if not apart:
        return (
            "Runs can be compared only if all were attacked with the same settings, "
            "but each attack is missing in the results of one of "
            f"{', '.join(path for path, _ in found)}; repeat one there, or compare "
            "fewer runs."
        )
    (path, own), (other, others) = apart[0]
    _, one, two = min(
        (sum(a != b for a, b in zip(one, two, strict=True)), one, two)
        for one in own
        for two in others
        if not attacks or one[0] == two[0]
    )
    different = [
        f"{name} is {a} in {path} and {b} in {other}"
        for name, a, b in zip(SAME, one, two, strict=True)
        if a != b
    ]
    return (
        "Runs can be compared only if they were attacked with the same settings, but "
        f"{'; '.join(different)}. Repeat one attack with the other's settings."
    )


def _tasks_alone(models: Sequence[Model], shared: Sequence[tuple]) -> list[str]:
    """The tasks that were attacked alone in all models, in the first one's order.

    In the same way in all: of two attacks on one task, each on another model, none is.
    """
    by_model = [
        dict.fromkeys(
            (settings, record["task"])
            for settings in shared
            for record in model.attacks[settings]
            if record["attacked"] == [record["task"]]
        )
        for model in models
    ]
    in_all = [way for way in by_model[0] if all(way in ways for ways in by_model)]
    return list(dict.fromkeys(task for _, task in in_all))


def _comparison(
    models: Sequence[Model], settings: tuple[str, ...], task: str, metric: str
) -> Comparison | None:
    """None where a model has no such results."""
    points, facts = {}, None
    name = metric
    for model in models:
        of_task = [
            record
            for record in model.attacks[settings]
            if record["attacked"] == [task] and record["task"] == task
        ]
        name = name or (of_task[0]["metric"] if of_task else "")
        chosen = [record for record in of_task if record["metric"] == name]
        if not chosen:
            return None
        facts = facts or chosen[0]
        _check_alike(facts, models[0].label, chosen[0], model.label)
        clean = (0.0, chosen[0]["clean"], *chosen[0]["clean_interval"])
        attacked = [
            (r["eps"], r["attacked_value"], *r["attacked_interval"]) for r in chosen
        ]
        points[model.label] = [clean, *sorted(attacked, key=lambda point: point[0])]
    return Comparison(task, facts, points) if facts else None


def _check_alike(one: Record, label: str, other: Record, other_label: str) -> None:
    """Raises `InputError` unless two models were judged in the same way.

    Pictures of another size are only warned of.
    """
    task = one["task"]
    if one.get("unit") != other.get("unit"):
        raise InputError(
            f"{task} is not in the same unit in all models: {one.get('unit')!r} "
            f"in {label}, {other.get('unit')!r} in {other_label}; "
            "compare models with the same targets, or leave this task out with "
            "--task."
        )
    if one.get("ignored") != other.get("ignored"):
        left_out = [record.get("ignored", "none") for record in (one, other)]
        raise InputError(
            f"{task} must be judged by the same classes in all models, but the "
            f"numbers of those left out are {left_out[0]} in {label} and "
            f"{left_out[1]} in {other_label}; attack both on the same data (and "
            "again what an earlier version attacked, which did not say them), or leave "
            "this task out with --task."
        )
    if other_images(one, other):
        raise InputError(
            f"{label} and {other_label} were attacked on other images "
            f"of {one['dataset']} {one['split']}; attack both on the same."
        )
    if other_size(one, other):
        logging.warning(
            "%s: pictures are %s in %s and %s in %s; a radius is not the same at "
            "another size",
            task,
            size_of(one),
            label,
            size_of(other),
            other_label,
        )


def other_images(one: Record, other: Record) -> bool:
    """Whether images of one size differ; those of two sizes cannot be told."""
    means = [_means(record) for record in (one, other)]
    if not all(means) or other_size(one, other):
        return False
    return any(abs(a - b) > _CLOSE for a, b in zip(*means, strict=True))


def size_of(record: Record) -> str:
    """Height x width of a record's images; empty where it does not say."""
    size = str(record.get("images", "")).partition(" ")[0]
    return "x".join(size.split("x")[:2])


def other_size(one: Record, other: Record) -> bool:
    """Whether two records are of pictures of other sizes, as far as they say."""
    sizes = size_of(one), size_of(other)
    return all(sizes) and sizes[0] != sizes[1]


def _means(record: Record) -> list[float]:
    """Those of a record's images."""
    return [float(mean) for mean in str(record.get("images", "")).split(" ")[1:]]


def _cell(value: float | None, ends: Sequence[float | None]) -> str:
    if value is None:  # What is not a number in JSON.
        return "-"
    if None in ends:
        return plain(value)
    return f"{plain(value)} ({'-'.join(map(plain, ends))})"


def text(comparisons: Sequence[Comparison], models: Sequence[Model]) -> str:
    """All tables as plain text."""
    parts = [f"{one.title}\n\n{tables.aligned(one.rows(), 'r')}" for one in comparisons]
    for title, rows in _joint(comparisons, models):
        parts.append(f"{title}\n\n{tables.aligned(rows, 'r')}")
    return "\n\n".join([*parts, _CAUTION])


def markdown(comparisons: Sequence[Comparison], models: Sequence[Model]) -> str:
    """All tables as Markdown."""
    shown = [(one.title, one.rows()) for one in comparisons]
    shown += _joint(comparisons, models)
    parts = [
        f"**{escaped(title)}**\n\n{tables.markdown(rows)}" for title, rows in shown
    ]
    return "\n\n".join([*parts, _CAUTION])


_JOINT = "rise of each task's loss, attacked together / attacked alone"
_CAUTION = (
    "One training run per model says nothing about the method: with another seed the\n"
    "order may be reversed. Intervals cover the choice of images, not of "
    "seeds."
)


def _joint(
    comparisons: Sequence[Comparison], models: Sequence[Model]
) -> list[tuple[str, list[list[str]]]]:
    """The titles and tables of joint attacks, of models that have been attacked so."""
    shared = dict.fromkeys(_settings(one.facts) for one in comparisons)
    found = []
    for settings in shared:
        for model in models:
            for kept in _joined(model.attacks, settings, shared):
                rows, facts = joint_rows(kept), kept[-1]
                if len(rows) > 1:
                    attack = f"{facts['attack']} ({_how(facts)})"
                    found.append((f"{model.label}, {attack}: {_JOINT}", rows))
    return found


def _joined(
    attacks: Mapping[tuple[str, ...], Sequence[Record]],
    settings: tuple[str, ...],
    shared: Iterable[tuple[str, ...]],
) -> list[list[Record]]:
    """The records of an attack; then these with those of each joint one that fits.

    An attack on one task has neither balance nor weights. So a joint one with some has
    other settings, and another name, and is compared with the same alone.
    """
    own = list(attacks[settings])
    alone = [record for record in own if len(record["attacked"]) == 1]
    found = [own]
    for other, records in attacks.items():
        if other not in shared and _apart(records[0]) == _apart(own[0]):
            found.append([*alone, *records])
    return found


def _apart(record: Record) -> tuple[str, ...]:
    """The settings of an attack without those that only joint ones have."""
    algorithm = record.get("algorithm") or record["attack"].partition("-")[0]
    but = ("attack", "balance", "weights")
    settings = [str(_setting(record, name)) for name in SAME if name not in but]
    return (algorithm, *settings)
