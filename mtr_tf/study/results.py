# SPDX-License-Identifier: Apache-2.0
"""The results in a study's folder, finished or not, as records and arrays."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import present
from mtr_tf.evaluation import cell_files
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.study.design import Study

Record = dict[str, Any]
# Fields in which records of an attack, radius, task and metric may differ; their types.
CHOICES = {
    "algorithm": str,
    "loss": str,
    "balance": str,
    "targeted": bool,
    "norm": str,
    "steps": float,
    "restarts": float,
}


@dataclasses.dataclass(frozen=True)
class Results:
    """The finished cells of a study; cells that are not done are simply absent.

    Attributes:
      study: The study.
      workdir: Its folder.
      cells: All cells of index.json, done or not.
      provenance: What study.json says about where the study comes from.
    """

    study: Study
    workdir: pathlib.Path
    _found: tuple[Record, ...] = dataclasses.field(repr=False, default=())
    _measured: tuple[Record, ...] = dataclasses.field(repr=False, default=())
    cells: tuple[Record, ...] = dataclasses.field(repr=False, default=())
    provenance: Record = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, workdir: str | pathlib.Path) -> Results:
        """Reads study.json, index.json and the files of all cells that are done.

        Raises:
          InputError: The folder holds no study, or one of its files is damaged.
        """
        workdir = pathlib.Path(workdir)
        try:
            return cls._read_all(workdir)
        except InputError:
            raise
        except files.DAMAGED as error:
            raise InputError(
                f"{workdir} holds damaged files ({type(error).__name__}: "
                f"{files.reason(error)}); repeat mtr_tf.reproduce to write them "
                "again."
            ) from error

    @classmethod
    def _read_all(cls, workdir: pathlib.Path) -> Results:
        content = _json(workdir / "study.json")
        cells = tuple(_json(workdir / "index.json")["cells"])
        result_records, measure_records = [], []
        for cell in cells:
            if cell["kind"] != "attack" or cell["state"] != "done":
                continue
            origin = {name: cell[name] for name in ("variant", "seed", "folder")}
            origin["spec"] = cell["attack"]
            folder = workdir / cell["folder"]
            for name, all_records in (
                ("results", result_records),
                ("measures", measure_records),
            ):
                if (folder / f"{name}.json").exists():
                    records = _json(folder / f"{name}.json")
                    all_records += [record | origin for record in records]
        return cls(
            Study.from_dict(content),
            workdir,
            tuple(result_records),
            tuple(measure_records),
            cells,
            dict(content.get("provenance", {})),
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the study."""
        return self.study.seeds

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants, in the order of the study."""
        return tuple(variant.name for variant in self.study.variants)

    def records(
        self,
        attack: str | None = None,
        variant: str | None = None,
        seed: int | None = None,
    ) -> list[Record]:
        """Records of results.json, with `variant`, `seed`, `folder` and `spec` added.

        `spec` is the attack's name in the study. The arguments choose; None: all.
        """
        return _select(self._found, attack, variant, seed)

    def measures(
        self,
        attack: str | None = None,
        variant: str | None = None,
        seed: int | None = None,
    ) -> list[Record]:
        """Records of measures.json, chosen and extended as those of `records`."""
        return _select(self._measured, attack, variant, seed)

    def models(self, variant: str, seed: int, attack: str) -> set[str]:
        """Fingerprints of the models that an attack saw as one variant and seed."""
        return self._models.get((variant, seed), {}).get(attack, set())

    @property
    def mixed(self) -> dict[str, list[int]]:
        """{variant: seeds} where attacks saw several models.

        A lost model is trained again; on another machine, it gets other bits.
        """
        seeds_by_variant: dict[str, list[int]] = {}
        for (variant, seed), by_attack in sorted(self._models.items()):
            if len(set().union(*by_attack.values())) > 1:
                seeds_by_variant.setdefault(variant, []).append(seed)
        return seeds_by_variant

    @functools.cached_property
    def _models(self) -> dict[tuple[str, int], dict[str, set[str]]]:
        """Fingerprints by (variant, seed) and attack, with those of attack sources."""
        models: dict[tuple[str, int], dict[str, set[str]]] = {}
        for record in (*self._found, *self._measured):
            attack, seed = record["spec"], record["seed"]
            for variant, name in (
                (record["variant"], "model_fingerprint"),
                (self.study.spec(attack).source, "source_fingerprint"),
            ):
                if variant and record.get(name):
                    attacks = models.setdefault((variant, seed), {})
                    attacks.setdefault(attack, set()).add(record[name])
        return models

    def record(
        self,
        variant: str,
        seed: int,
        attack: str,
        eps: float,
        task: str,
        metric: str,
        attacked: Sequence[str] = (),
        **choices: Any,
    ) -> Record | None:
        """The one record that fits; None if it is not there (yet).

        Args:
          variant: Name of a variant.
          seed: A seed of the study.
          attack: Name of an attack of the study.
          eps: A radius of the attack; 0 gives any record, for its clean value.
          task: Name of the task.
          metric: Name of its metric.
          attacked: Tasks attacked together; empty for `task` alone.
          **choices: Fields of `CHOICES` in which the attack's records differ, such as
            algorithm="apgd".

        Raises:
          InputError: Several records fit; the message says in what they differ.
        """
        fields = {"task": task, "metric": metric, **choices}
        if eps:
            fields |= {"eps": eps, "attacked": list(attacked) or [task]}
        records = self._index.get((attack, variant, seed), ())
        matches = [record for record in records if fits(record, fields)]
        if len(matches) > 1 and eps:
            raise InputError(ambiguous(attack, matches, fields))
        if not matches and self.study.has_own_data:
            _check_metric(task, metric, records)
        return matches[0] if matches else None

    def values(
        self,
        variant: str,
        attack: str,
        eps: float,
        task: str,
        metric: str,
        attacked: Sequence[str] = (),
        **choices: Any,
    ) -> np.ndarray:
        """The metric of each seed, `[seeds]`, NaN where absent; see `record`."""
        point = (attack, eps, task, metric, attacked)
        records = [self.record(variant, s, *point, **choices) for s in self.seeds]
        return np.array([value_of(record, eps) for record in records], float)

    def rows_of(self, record: Record | None, eps: float) -> np.ndarray | None:
        """The rows of a record's metric, float64 `[images, K]`; None where absent.

        They are those of the attacked images, or, if `eps` is 0, of the clean ones.
        """
        name = (record or {}).get("rows" if eps else "clean_rows")
        if record is None or not name:
            return None
        task, metric = record["task"], record["metric"]
        rows = self._read(
            record, name, f"row/{task}/{metric}", lambda cell: cell.rows[task][metric]
        )
        return np.asarray(rows, float)

    def units_of(self, record: Record) -> resampling.Units | None:
        """The units that a record's images are resampled by; None without rows."""
        if not record.get("clean_rows"):
            return None
        over = record.get("interval_over", "images")
        if over == "images":
            return resampling.independent(record["n"])
        name = record["clean_rows"]
        unit = self._read(record, name, "unit", lambda cell: present(cell.unit, "unit"))
        return resampling.Units(unit, over)

    def ignored_of(self, record: Record) -> tuple[int, ...]:
        """The classes that mean IoUs of a record leave out.

        Records may lack them; then they are read from the run's config.json.
        """
        if "ignored" in record:
            return tuple(record["ignored"])
        run = (self.workdir / record["folder"]).parent.parent
        if run not in self._tasks:
            self._tasks[run] = files.read_object(run / "config.json").get("tasks", ())
        tasks = (task for task in self._tasks[run] if task["name"] == record["task"])
        return tuple(next(tasks, {}).get("ignored", ()))

    @functools.cached_property
    def _tasks(self) -> dict[pathlib.Path, Sequence[Record]]:
        """The tasks in the config.json of each run that was read so far."""
        return {}

    def _read(
        self,
        record: Record,
        name: str,
        prefix: str,
        extract: Callable[[Result], np.ndarray],
    ) -> np.ndarray:
        """Reads the arrays with a prefix from a file in a record's folder."""
        path = self.workdir / record["folder"] / name
        try:
            return extract(cell_files.read(path, prefix))
        except files.DAMAGED as error:
            raise InputError(
                f"{path} is missing or damaged ({files.reason(error)}); delete the "
                f"folder {self.workdir / record['folder']} and repeat mtr_tf.reproduce."
            ) from error

    @functools.cached_property
    def _index(self) -> Mapping[tuple[str, str, int], list[Record]]:
        """Records by (attack, variant, seed)."""
        index: dict[tuple[str, str, int], list[Record]] = {}
        for record in self._found:
            key = (record["spec"], record["variant"], record["seed"])
            index.setdefault(key, []).append(record)
        return index


def _check_metric(task: str, metric: str, records: Sequence[Record]) -> None:
    """Raises `InputError` if a task of a user's own data does not have a metric.

    A study file names metrics before it is known which ones exist.
    """
    metrics = list(dict.fromkeys(r["metric"] for r in records if r["task"] == task))
    if metrics and metric not in metrics:
        raise InputError(
            f"The study asks for {metric!r} of {task}, whose metrics are "
            f"{', '.join(metrics)}; name one of these.{did_you_mean(metric, metrics)}"
        )


def value_of(record: Record | None, eps: float) -> float:
    """A record's attacked value, or its clean one at eps 0; NaN if there is none."""
    value = record["attacked_value" if eps else "clean"] if record else None
    return np.nan if value is None else float(value)


def _select(records, attack, variant, seed) -> list[Record]:
    conditions = {"spec": attack, "variant": variant, "seed": seed}
    conditions = {
        name: value for name, value in conditions.items() if value is not None
    }
    return [r for r in records if all(r[name] == v for name, v in conditions.items())]


def fits(record: Record, fields: Mapping[str, Any]) -> bool:
    """Whether a record has these fields; lists of tasks may be in any order."""
    return all(
        sorted(record[name]) == sorted(value)
        if isinstance(record.get(name), list) and isinstance(value, list)
        else record.get(name) == value
        for name, value in fields.items()
    )


def ambiguous(attack: str, records: Sequence[Record], fields: Mapping[str, Any]) -> str:
    """The message for several records of an attack that fit."""
    differences = []
    for name in CHOICES:
        values = sorted({str(record.get(name)) for record in records})
        if name not in fields and len(values) > 1:
            differences.append(f"{name} ({', '.join(values)})")
    return (
        f"attack {attack!r} of the study has several results that fit; choose one "
        f"with {' and '.join(differences) or 'another name for one of them'}."
    )


def _json(path: pathlib.Path) -> Any:
    try:
        return files.read_json(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; --workdir must be the folder of a study that "
            "mtr_tf.reproduce has begun."
        ) from error
    except files.DAMAGED as error:
        raise InputError(
            f"{path} cannot be read ({files.reason(error)}); repeat mtr_tf.reproduce "
            "to write it again."
        ) from error
