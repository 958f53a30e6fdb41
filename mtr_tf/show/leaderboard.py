# SPDX-License-Identifier: Apache-2.0
"""Records of models under attack that others can collect, and a page made of them.

A file of records is a JSON list. Each record says how a metric of one task of a model,
which may have been trained with several seeds, holds under one attack. Studies write
such files (report/records.json), and so does `mtr_tf.compare --leaderboard`. Records
of several files, whoever made them, give one page: for each task, data set and radius,
the models are sorted by the metric under the attack that did them the most harm.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
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
from mtr_tf.show import pages
from mtr_tf.show import style
from mtr_tf.show import text
from mtr_tf.show.side_by_side import SAME
from mtr_tf.show.side_by_side import details
from mtr_tf.show.side_by_side import effort
from mtr_tf.show.side_by_side import is_text_list
from mtr_tf.show.side_by_side import size_of

Record = Mapping[str, Any]

SCHEMA = "mtr_tf/robustness/1"
_RESULT = ("task", "metric", "better", "unit", "ignored", "dataset", "split", "n")
# The fields of results.json that identify the attack of a record. The model that images
# were made on differs from seed to seed: `of_results` writes `transfer` instead.
_ATTACK = ("eps", "attacked", "step_size")
_ATTACK += tuple(name for name in SAME if name not in (*_RESULT, "source_fingerprint"))
_TRAIN = ("model", "width", "image_size", "adversarial_tasks")
_SHARING = {"decoders": "separate", "shared_stages": -1}  # Usual values, left out.


def of_results(
    name: str, seed: int, records: Iterable[Record], config: Record, settings: Record
) -> list[dict[str, Any]]:
    """The records of one seed, for `together` to merge; values have six digits.

    Args:
      name: Of the model, the same for all its seeds.
      seed: The seed of this run.
      records: The content of results.json.
      config: The content of the run's config.json; empty for a user's own model.
      settings: The content of the attack's settings.json: commit, versions, platform.
    """
    train = config.get("train") or {}
    sharing = {k: train[k] for k, v in _SHARING.items() if train.get(k, v) != v}
    model = {
        "schema": SCHEMA,
        "name": name,
        "tasks": list(train.get("tasks") or ()),
        "architecture": {k: train[k] for k in _TRAIN if train.get(k)} | sharing,
    }
    origin = {
        "commit": settings.get("commit"),
        "version": (settings.get("versions") or {}).get("mtr_tf"),
        "platform": settings.get("platform"),
    }
    return [
        _seed_record(model, seed, record)
        | {key: [value] for key, value in origin.items() if value}
        for record in records
        if record["eps"]
        and record.get("better")
        and _stays_in_ball(record)
        and None not in (record["clean"], record["attacked_value"])
    ]


def _seed_record(model: Record, seed: int, record: Record) -> dict[str, Any]:
    """The record of one seed from a model's fields and a record of its results."""
    entry = {
        **model,
        **{k: record[k] for k in (*_RESULT, *_ATTACK) if record.get(k)},
    }
    entry |= {key: record[key] for key in ("eps", "n", "attacked")}
    if record.get("source_fingerprint"):
        entry["transfer"] = True
    if _has_own_data(record):
        entry["images"] = record["images"]
    if (size := size_of(record)) not in ("", _trained_size(model)):
        entry["size"] = size
    entry["seeds"] = [seed]
    entry["models"] = [str(record.get("model_fingerprint", ""))[:12]]
    for key in ("clean", "attacked_value"):
        entry[key] = [float(f"{record[key]:.6g}")]
    return entry


def _stays_in_ball(record: Record) -> bool:
    """Whether the record's attack does; other attacks may go beyond the radius."""
    words = f"{record['attack']}-"  # As "pgd-dgba".
    unbounded = (name for name, kind in KINDS.items() if not kind.bounded)
    return not any(words.startswith(f"{name}-") for name in unbounded)


def _has_own_data(record: Record) -> bool:
    """Whether the name of the record's data set does not identify the data."""
    name = record["dataset"]
    return bool(record.get("images")) and (name == "examples" or ":" in name)


def of_folder(name: str, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a finished attack on a model: of RUN/attacks/NAME, or of --out.

    Args:
      name: Of the model.
      folder: Must hold results.json; its other files are optional.

    Raises:
      InputError: A file is damaged.
    """
    try:
        settings = _json_object(folder / "settings.json")
        # A folder of --out has the run's settings itself.
        out_folder = settings.get("attack", {}).get("out")
        config = (
            settings
            if out_folder
            else _json_object(folder.parent.parent / "config.json")
        )
        records = files.read_json(folder / "results.json")
        seed = (config.get("train") or {}).get("seed", 0)
        return of_results(name, seed, records, config, settings)
    except files.DAMAGED as error:
        raise InputError(
            f"the results in {folder} are damaged ({files.reason(error)}); repeat the "
            "attack to write them again."
        ) from error


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    return dict(files.read_json(path)) if path.exists() else {}


def together(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One record for each model and attack, with lists over its seeds.

    Of two results of the same attack on the same model, the more harmful one counts. Of
    different models with the same name, architecture and seed, only the one whose
    records come last is taken, with a warning: the others are assumed to be older.
    """
    records = list(records)
    fingerprints = {
        (*_model(record), seed): fingerprint
        for record in records
        for seed, fingerprint in zip(record["seeds"], _models(record), strict=True)
        if fingerprint
    }
    by_key: dict[str, dict[str, Any]] = {}
    replaced_models = set()
    for record in records:
        common = {
            k: v for k, v in record.items() if k not in _SEED_FIELDS + _ORIGIN_FIELDS
        }
        key = json.dumps(common, sort_keys=True)
        model, rows = _model(record), []
        columns = [*(record[field] for field in _VALUE_FIELDS), _models(record)]
        for row in zip(*columns, strict=True):
            seed, *_, fingerprint = row
            if fingerprint and fingerprints[*model, seed] != fingerprint:
                replaced_models.add(f"{record['name']} (seed {seed})")
            else:
                rows.append(row)
        if not rows:
            continue
        merged = by_key.setdefault(key, common | {k: [] for k in _SEED_FIELDS})
        for row in rows:
            _add_row(merged, dict(zip(_SEED_FIELDS, row, strict=True)))
        for field in _ORIGIN_FIELDS:
            origins = [*merged.get(field, ()), *record.get(field, ())]
            if origins:
                merged[field] = list(dict.fromkeys(origins))
    if replaced_models:
        logging.warning(
            "several models have the same name: of %s only the records of the one that "
            "is given last are taken; to keep others, rename their runs",
            ", ".join(sorted(replaced_models)),
        )
    return list(by_key.values())


def _model(record: Record) -> tuple[str, str]:
    """The key of a record's model: its name and architecture."""
    return record["name"], json.dumps(record.get("architecture"), sort_keys=True)


def _models(record: Record) -> Sequence[str]:
    """The fingerprint of each seed's model; empty in older records, which lack it."""
    return record.get("models") or [""] * len(record["seeds"])


def _add_row(record: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Adds the values of a seed to a record, or replaces less harmful ones of it."""
    if row["seeds"] not in record["seeds"]:
        for field, value in row.items():
            record[field].append(value)
        return
    index = record["seeds"].index(row["seeds"])
    old_value, new_value = record["attacked_value"][index], row["attacked_value"]
    if new_value < old_value if record["better"] == "higher" else new_value > old_value:
        for field, value in row.items():
            record[field][index] = value


_VALUE_FIELDS = ("seeds", "clean", "attacked_value")
_SEED_FIELDS = (*_VALUE_FIELDS, "models")
_ORIGIN_FIELDS = ("commit", "version", "platform")


def write(records: Sequence[Record], path: pathlib.Path) -> None:
    """Writes records as JSON, a line for each."""
    lines = ",\n".join(json.dumps(dict(record), allow_nan=False) for record in records)
    files.write_text(path, f"[\n{lines}\n]\n")


# Reading records of others.


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file.

    Raises:
      InputError: It cannot be read, or has something else than such records.
    """
    try:
        records = files.read_json(path)
        if not isinstance(records, list):
            raise ValueError("it is no list")
        for number, record in enumerate(records, start=1):
            _check(record, number)
    except files.DAMAGED as error:
        raise InputError(
            f"{path} must be a file of records, as studies and mtr_tf.compare "
            f"--leaderboard write them; {files.reason(error)}."
        ) from error
    return records


def _is_number_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    )


def _is_type(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


_TEXT = "a text", _is_type(str)
_TEXTS = "a list of texts", is_text_list
# {required field: (what it must be, in words; check of a value)}.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("name", "attack", "norm", "task", "metric"), _TEXT),
    **dict.fromkeys(("dataset", "split"), _TEXT),
    "better": ("higher or lower", lambda value: value in ("higher", "lower")),
    "eps": ("a finite number", lambda value: _is_number_list([value])),
    "n": ("a whole number", _is_type(int)),
    **dict.fromkeys(("tasks", "attacked"), _TEXTS),
    **dict.fromkeys(_VALUE_FIELDS, ("a list of finite numbers", _is_number_list)),
}
# The same for optional fields.
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("unit", "images", "size", "targets"), _TEXT),
    "restarts": ("a whole number", _is_type(int)),
    **dict.fromkeys(("architecture", "weights"), ("an object", _is_type(dict))),
    **dict.fromkeys((*_ORIGIN_FIELDS, "models", "ensemble"), _TEXTS),
    **dict.fromkeys(
        ("attack_block", "attack_classes", "ignored"), ("a list", _is_type(list))
    ),
}


def _check(record: Any, number: int) -> None:
    """Raises `ValueError` or `LookupError` unless `record` is a valid record."""
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema of record {number} is not {SCHEMA!r}")
    optional = {name: field for name, field in _OPTIONAL.items() if name in record}
    for name, (requirement, is_valid) in (_FIELDS | optional).items():
        if not is_valid(record[name]):
            raise ValueError(
                f"{name} of record {number} must be {requirement}, got "
                f"{shortened(record[name])}"
            )
    columns = [record[name] for name in _VALUE_FIELDS]
    if len({len(column) for column in (*columns, _models(record))}) > 1:
        raise ValueError(f"record {number} has not one value for each seed")
    json.dumps(record, allow_nan=False)  # Raises for what `write` could not write.


# The page.


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on a board.

    Attributes:
      place: Its rank, from 1.
      name: The model's name.
      tasks: The tasks that it predicts.
      clean: The clean value, the mean over seeds.
      attacked: The same under the most harmful attack, with the standard deviation.
      attack: The most harmful attack.
      tried: The number of attacks with records.
      seeds: The number of seeds under the most harmful attack.
      commit: The abbreviated commits.
    """

    place: int
    name: str
    tasks: str
    clean: str
    attacked: str
    attack: str
    tried: int
    seeds: int
    commit: str


@dataclasses.dataclass(frozen=True)
class Board:
    """Models in order, for one task, data and radius."""

    title: str
    about: str
    rows: Sequence[Row]


def boards(records: Iterable[Record]) -> list[Board]:
    """All boards that the records allow, for tasks that were attacked alone.

    A board shows the first metric of a model's task.
    """
    groups: dict[tuple, list[Record]] = {}
    headline: dict[tuple, str] = {}
    for record in records:
        task = record["task"]
        metric = headline.setdefault((_model(record), task), record["metric"])
        attacked_alone = record["attacked"] == [task] and record["metric"] == metric
        if attacked_alone and _stays_in_ball(record):
            groups.setdefault(_board_key(record), []).append(record)
    return [_make_board(members) for members in groups.values()]


def _board_key(record: Record) -> tuple:
    """The key of a record's board: what all models of a board have in common."""
    size = record.get("size") or _trained_size(record)
    data = (record["dataset"], record["split"], record["n"], size)
    subject = (record["task"], record["metric"], record.get("targets") or "data")
    ball = (record["norm"], record["eps"])
    kind = (record.get("unit") or "", record["better"], record.get("images") or "")
    return (*subject, *data, *ball, *kind, tuple(map(str, record.get("ignored") or ())))


def _trained_size(record: Record) -> str:
    """The image size that a model was trained at, height x width; empty if unknown."""
    size = str((record.get("architecture") or {}).get("image_size", ""))
    return f"{size}x{size}" if size.isdigit() else size


def _make_board(records: Sequence[Record]) -> Board:
    by_model: dict[tuple, list[Record]] = {}
    for record in records:
        by_model.setdefault(_model(record), []).append(record)
    first = records[0]
    higher = first["better"] == "higher"
    sign = -1 if higher else 1
    entries = [(_strongest(group, sign), len(group)) for group in by_model.values()]
    entries.sort(key=lambda pair: sign * statistics.fmean(pair[0]["attacked_value"]))
    key = _board_key(first)
    task, metric, targets, dataset, split, n, size, norm, eps, unit, *_ = key
    unit = f" [{unit}]" if unit else ""
    size_note = f" at {size} pixels" if size else ""
    ignored = ", ".join(key[-1])
    ignored_note = f", without the classes numbered {ignored}" if ignored else ""
    judge = ", judged by the models' own clean outputs" if targets == "own" else ""
    return Board(
        f"{task} {metric}{unit}, {norm} eps {eps:g} ({style.unit_of(norm)}){judge}",
        f"{n} images of {dataset} ({split}){size_note}{ignored_note}; "
        f"{'higher' if higher else 'lower'} is better.",
        [_row(place, *pair) for place, pair in enumerate(entries, start=1)],
    )


def _strongest(records: Sequence[Record], sign: int) -> Record:
    """The record of the attack that did a model the most harm.

    Two attacks are compared by their means over the seeds that both have, or over all
    their seeds if they share none. The attack with fewer seeds counts as stronger only
    if its additional harm exceeds the effect of the choice of seeds: how far the other
    attack's mean over the shared seeds is from its mean over all. So an unlucky seed
    does not make an attack stronger.

    Args:
      records: The records of one model, one per attack.
      sign: -1 where higher values are better, else 1.
    """
    strongest, *candidates = sorted(records, key=lambda record: -len(record["seeds"]))
    for candidate in candidates:
        seeds = [seed for seed in strongest["seeds"] if seed in candidate["seeds"]]
        strongest_mean = _mean(strongest, seeds or strongest["seeds"])
        harm = sign * (_mean(candidate, seeds or candidate["seeds"]) - strongest_mean)
        if harm > abs(_mean(strongest, strongest["seeds"]) - strongest_mean):
            strongest = candidate
    return strongest


def _mean(record: Record, seeds: Sequence[int]) -> float:
    """The mean over some seeds of the metric's value under a record's attack."""
    values = dict(zip(record["seeds"], record["attacked_value"], strict=True))
    return statistics.fmean(values[seed] for seed in seeds)


def _row(place: int, record: Record, attack_count: int) -> Row:
    values = record["attacked_value"]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    # The board's title says whose targets count.
    facts = {k: v for k, v in record.items() if k in _ATTACK and k != "targets"}
    attack = [record["attack"], *effort(record), *details(facts)]
    attack += ["transferred"] if "transfer" in record else []
    return Row(
        place=place,
        name=record["name"],
        tasks=", ".join(record["tasks"]) or text.NONE,
        clean=text.number(statistics.fmean(record["clean"])),
        attacked=f"{text.number(statistics.fmean(values))}{spread}",
        attack=", ".join(attack),
        tried=attack_count,
        seeds=len(record["seeds"]),
        commit=", ".join(str(commit)[:7] for commit in record.get("commit", ()))
        or text.NONE,
    )


def html(records: Sequence[Record]) -> str:
    """The page as a single file that needs no others."""
    environment = pages.environment("mtr_tf.show", autoescape=True)
    return environment.get_template("leaderboard.html").render(boards=boards(records))
