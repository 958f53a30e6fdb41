# SPDX-License-Identifier: Apache-2.0
"""Records of models under attack that others can collect, and a page made of them.

A file of records is a JSON list; each record says of one model, which may have been
trained with several seeds, how one metric of one task holds under one attack. Studies
write them (report/records.json), and so does `mtr_tf.compare --leaderboard`. Records
of several files, whoever made them, give one page: for each task, data and radius the
models in the order of what is left under the attack that did them the most harm.
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
from mtr_tf.show.side_by_side import size_of

Record = Mapping[str, Any]

SCHEMA = "mtr_tf/robustness/1"
_WHAT = ("task", "metric", "better", "unit", "ignored", "dataset", "split", "n")
# What chooses an attack, as results.json has it; records are of one of each. The model
# that images were made on differs from seed to seed: `of_results` says `transfer`.
_ATTACK = ("eps", "attacked", "step_size")
_ATTACK += tuple(name for name in SAME if name not in (*_WHAT, "source_fingerprint"))
_TRAINED = ("model", "width", "image_size", "adversarial_tasks")
_SHARING = {"decoders": "separate", "shared_stages": -1}  # Said where it is unusual.


def of_results(
    name: str, seed: int, records: Iterable[Record], config: Record, made: Record
) -> list[dict[str, Any]]:
    """The records of one seed, to be put together by `together`; six digits are kept.

    Args:
      name: Of the model, the same for all its seeds.
      seed: Its own.
      records: Of results.json.
      config: Of the run's config.json; empty for a model of one's own.
      made: Of the attack's settings.json: commit, versions, platform.
    """
    trained = config.get("train") or {}
    sharing = {k: trained[k] for k, v in _SHARING.items() if trained.get(k, v) != v}
    about = {
        "schema": SCHEMA,
        "name": name,
        "tasks": list(trained.get("tasks") or ()),
        "architecture": {k: trained[k] for k in _TRAINED if trained.get(k)} | sharing,
    }
    traced = {
        "commit": made.get("commit"),
        "version": (made.get("versions") or {}).get("mtr_tf"),
        "platform": made.get("platform"),
    }
    return [
        _of_seed(about, seed, record)
        | {key: [value] for key, value in traced.items() if value}
        for record in records
        if record["eps"]
        and record.get("better")
        and _stays_in_ball(record)
        and None not in (record["clean"], record["attacked_value"])
    ]


def _of_seed(about: Record, seed: int, record: Record) -> dict[str, Any]:
    """What is said of a model and of one record of its results."""
    found = {**about, **{k: record[k] for k in (*_WHAT, *_ATTACK) if record.get(k)}}
    found |= {key: record[key] for key in ("eps", "n", "attacked")}
    if record.get("source_fingerprint"):
        found["transfer"] = True
    if _has_own_data(record):
        found["images"] = record["images"]
    if (size := size_of(record)) not in ("", _size(about)):
        found["size"] = size
    found["seeds"] = [seed]
    found["models"] = [str(record.get("model_fingerprint", ""))[:12]]
    for key in ("clean", "attacked_value"):
        found[key] = [float(f"{record[key]:.6g}")]
    return found


def _stays_in_ball(record: Record) -> bool:
    """Whether its attack does: others may do more harm than the radius allows."""
    words = f"{record['attack']}-"  # As "pgd-dgba".
    unbound = (name for name, kind in KINDS.items() if not kind.bounded)
    return not any(words.startswith(f"{name}-") for name in unbound)


def _has_own_data(record: Record) -> bool:
    """Whether the name of its data does not say which these are."""
    name = record["dataset"]
    return bool(record.get("images")) and (name == "examples" or ":" in name)


def of_folder(name: str, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of RUN/attacks/NAME, or of --out: a finished attack on a model.

    Args:
      name: Of the model.
      folder: With results.json; what else it holds may be absent.

    Raises:
      InputError: A file is damaged.
    """
    try:
        made = _json(folder / "settings.json")
        # A folder of --out has the run's settings itself.
        apart = made.get("attack", {}).get("out")
        config = made if apart else _json(folder.parent.parent / "config.json")
        records = files.read_json(folder / "results.json")
        seed = (config.get("train") or {}).get("seed", 0)
        return of_results(name, seed, records, config, made)
    except files.DAMAGED as error:
        raise InputError(
            f"the results in {folder} are damaged ({files.reason(error)}); repeat the "
            "attack to write them again."
        ) from error


def _json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    return dict(files.read_json(path)) if path.exists() else {}


def together(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One record for each model and attack, with lists over its seeds.

    Where records tell of the same attack on the same model twice, the one that did it
    more harm counts. Those of another model of the same name, architecture and seed are
    left out, with a warning, for those that come last: they are taken to be older.
    """
    records = list(records)
    newest = {
        (*_model(record), seed): made
        for record in records
        for seed, made in zip(record["seeds"], _models(record), strict=True)
        if made
    }
    found: dict[str, dict[str, Any]] = {}
    replaced = set()
    for record in records:
        same = {k: v for k, v in record.items() if k not in _BY_SEED + _TRACED}
        key = json.dumps(same, sort_keys=True)
        model, taken = _model(record), []
        columns = [*(record[field] for field in _VALUES), _models(record)]
        for row in zip(*columns, strict=True):
            seed, *_, made = row
            if made and newest[*model, seed] != made:
                replaced.add(f"{record['name']} (seed {seed})")
            else:
                taken.append(row)
        if not taken:
            continue
        kept = found.setdefault(key, same | {k: [] for k in _BY_SEED})
        for row in taken:
            _take(kept, dict(zip(_BY_SEED, row, strict=True)))
        for field in _TRACED:
            several = [*kept.get(field, ()), *record.get(field, ())]
            if several:
                kept[field] = list(dict.fromkeys(several))
    if replaced:
        logging.warning(
            "several models have the same name: of %s only the records of the one that "
            "is given last are taken; to keep others, rename their runs",
            ", ".join(sorted(replaced)),
        )
    return list(found.values())


def _model(record: Record) -> tuple[str, str]:
    """What a model is known by."""
    return record["name"], json.dumps(record.get("architecture"), sort_keys=True)


def _models(record: Record) -> Sequence[str]:
    """The fingerprint of each seed's model; empty where older records do not say."""
    return record.get("models") or [""] * len(record["seeds"])


def _take(kept: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Adds what is of a seed to a record, or takes it for what did it less harm."""
    if row["seeds"] not in kept["seeds"]:
        for field, value in row.items():
            kept[field].append(value)
        return
    place = kept["seeds"].index(row["seeds"])
    before, now = kept["attacked_value"][place], row["attacked_value"]
    if now < before if kept["better"] == "higher" else now > before:
        for field, value in row.items():
            kept[field][place] = value


_VALUES = ("seeds", "clean", "attacked_value")
_BY_SEED = (*_VALUES, "models")
_TRACED = ("commit", "version", "platform")


def write(records: Sequence[Record], path: pathlib.Path) -> None:
    """Writes records as JSON, a line for each."""
    lines = ",\n".join(json.dumps(dict(one), allow_nan=False) for one in records)
    files.write_text(path, f"[\n{lines}\n]\n")


# Reading those of others.


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file.

    Raises:
      InputError: It cannot be read, or one of them is no such record.
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


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(one) in (int, float) and math.isfinite(one) for one in value)
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


_TEXT = "a text", _is(str)
_TEXTS = "a list of texts", _texts
# What records have, what it must be in words, and whether it is.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("name", "attack", "norm", "task", "metric"), _TEXT),
    **dict.fromkeys(("dataset", "split"), _TEXT),
    "better": ("higher or lower", lambda value: value in ("higher", "lower")),
    "eps": ("a finite number", lambda value: _numbers([value])),
    "n": ("a whole number", _is(int)),
    **dict.fromkeys(("tasks", "attacked"), _TEXTS),
    **dict.fromkeys(_VALUES, ("a list of finite numbers", _numbers)),
}
# What they may have.
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("unit", "images", "size", "targets"), _TEXT),
    "restarts": ("a whole number", _is(int)),
    **dict.fromkeys(("architecture", "weights"), ("an object", _is(dict))),
    **dict.fromkeys((*_TRACED, "models", "ensemble"), _TEXTS),
    **dict.fromkeys(
        ("attack_block", "attack_classes", "ignored"), ("a list", _is(list))
    ),
}


def _check(record: Any, number: int) -> None:
    """Raises `ValueError` or `LookupError` for what is no record."""
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema of record {number} is not {SCHEMA!r}")
    there = {name: field for name, field in _OPTIONAL.items() if name in record}
    for name, (what, fits) in (_FIELDS | there).items():
        if not fits(record[name]):
            raise ValueError(
                f"{name} of record {number} must be {what}, got "
                f"{shortened(record[name])}"
            )
    by_seed = [record[name] for name in _VALUES]
    if len({len(each) for each in (*by_seed, _models(record))}) > 1:
        raise ValueError(f"record {number} has not one value for each seed")
    json.dumps(record, allow_nan=False)  # Else it cannot be written again.


# The page.


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on a board.

    Attributes:
      place: From 1.
      name: The model's.
      tasks: What it predicts.
      clean: Mean over seeds.
      attacked: The same under the attack that did the most harm, with its deviation.
      attack: That attack.
      tried: How many attacks there are records of.
      seeds: How many the attack that counts is of.
      commit: Short; several are named.
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
    """All boards that the records allow: of tasks that were attacked alone.

    Of each model and task the first metric is taken.
    """
    grouped: dict[tuple, list[Record]] = {}
    headline: dict[tuple, str] = {}
    for record in records:
        task = record["task"]
        metric = headline.setdefault((_model(record), task), record["metric"])
        alone = record["attacked"] == [task] and record["metric"] == metric
        if alone and _stays_in_ball(record):
            grouped.setdefault(_board(record), []).append(record)
    return [_made(members) for members in grouped.values()]


def _board(record: Record) -> tuple:
    """What all models of a board have in common."""
    size = record.get("size") or _size(record)
    data = (record["dataset"], record["split"], record["n"], size)
    of = (record["task"], record["metric"], record.get("targets") or "data")
    on = (record["norm"], record["eps"])
    kind = (record.get("unit") or "", record["better"], record.get("images") or "")
    return (*of, *data, *on, *kind, tuple(map(str, record.get("ignored") or ())))


def _size(record: Record) -> str:
    """The size that a model was trained at, height x width; empty if not known."""
    size = str((record.get("architecture") or {}).get("image_size", ""))
    return f"{size}x{size}" if size.isdigit() else size


def _made(records: Sequence[Record]) -> Board:
    by_model: dict[tuple, list[Record]] = {}
    for record in records:
        by_model.setdefault(_model(record), []).append(record)
    first = records[0]
    higher = first["better"] == "higher"
    sign = -1 if higher else 1
    worst = [(_strongest(own, sign), len(own)) for own in by_model.values()]
    worst.sort(key=lambda pair: sign * statistics.fmean(pair[0]["attacked_value"]))
    board = _board(first)
    task, metric, targets, dataset, split, n, size, norm, eps, unit, *_ = board
    unit = f" [{unit}]" if unit else ""
    pixels = f" at {size} pixels" if size else ""
    ignored = ", ".join(board[-1])
    but = f", without the classes numbered {ignored}" if ignored else ""
    own = ", judged by the models' own clean outputs" if targets == "own" else ""
    return Board(
        f"{task} {metric}{unit}, {norm} eps {eps:g} ({style.unit_of(norm)}){own}",
        f"{n} images of {dataset} ({split}){pixels}{but}; "
        f"{'higher' if higher else 'lower'} is better.",
        [_row(place, *pair) for place, pair in enumerate(worst, start=1)],
    )


def _strongest(records: Sequence[Record], sign: int) -> Record:
    """The attack that did a model the most harm: of two, on the seeds that both have.

    One that lacks seeds takes the place of another only if it did more harm than the
    choice of seeds makes: how far the other's mean over them is from that over all of
    its own. So an unlucky seed is no stronger attack. Where they share no seed, the
    means of both are compared.

    Args:
      records: Of one model.
      sign: -1 where higher values are better, else 1.
    """
    best, *others = sorted(records, key=lambda record: -len(record["seeds"]))
    for other in others:
        shared = [seed for seed in best["seeds"] if seed in other["seeds"]]
        of_best = _mean(best, shared or best["seeds"])
        harm = sign * (_mean(other, shared or other["seeds"]) - of_best)
        if harm > abs(_mean(best, best["seeds"]) - of_best):
            best = other
    return best


def _mean(record: Record, seeds: Sequence[int]) -> float:
    """What an attack left, the mean over some of its seeds."""
    left = dict(zip(record["seeds"], record["attacked_value"], strict=True))
    return statistics.fmean(left[seed] for seed in seeds)


def _row(place: int, record: Record, tried: int) -> Row:
    values = record["attacked_value"]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    attack = [record["attack"]]
    attack += [f"{record['steps']} steps"] if record.get("steps") else []
    restarts = record.get("restarts", 1)
    attack += [f"{restarts} restarts"] if restarts > 1 else []
    said = {k: v for k, v in record.items() if k in _ATTACK and k != "targets"}
    attack += details(said)  # The title says whose targets they are.
    attack += ["transferred"] if "transfer" in record else []
    return Row(
        place=place,
        name=record["name"],
        tasks=", ".join(record["tasks"]) or text.NONE,
        clean=text.number(statistics.fmean(record["clean"])),
        attacked=f"{text.number(statistics.fmean(values))}{spread}",
        attack=", ".join(attack),
        tried=tried,
        seeds=len(record["seeds"]),
        commit=", ".join(str(one)[:7] for one in record.get("commit", ())) or text.NONE,
    )


def html(records: Sequence[Record]) -> str:
    """The page, one file that needs nothing else."""
    environment = pages.environment("mtr_tf.show", autoescape=True)
    return environment.get_template("leaderboard.html").render(boards=boards(records))
