# SPDX-License-Identifier: Apache-2.0
"""Makes the folder of a study as `mtr_tf.reproduce` leaves it, without any training.

The metrics compute all values from the rows in cells/*.npz, as in a real study.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from mtr_tf import files
from mtr_tf.config.attack import AttackConfig
from mtr_tf.evaluation import results
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.measures import records as measure_records
from mtr_tf.runs import directory
from mtr_tf.study import study_file
from mtr_tf.study.design import Study
from mtr_tf.study.design import slug
from mtr_tf.study.results import Results
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import task_set

CLASSES = 4
SIDE = 24
PICTURES = 3

Drop = Callable[[str, int, str, float, str, bool], float]
"""(variant, seed, attack, eps, task, attacked) -> what is lost of 1, in [0, 1)."""


EXAMPLE = """
about = "Does depth beside make segmentation more robust? A made-up example."
seeds = [0, 1, 2, 3, 4]
[train]
dataset = "rooms"
[attack]
num_examples = 96
[variants."s"]
tasks = ["seg"]
note = "one task"
[variants."s+d"]
tasks = ["seg", "depth"]
main_tasks = ["seg"]
aux_weight = 0.1
[attacks."pgd50"]
attack = ["pgd"]
attack_tasks = ["seg"]
steps = 50
eps = [1, 4]
[attacks."theory"]
attack = ["none"]
eps = [4]
variants = ["s+d"]
measure = ["tasks", "pixels", "first_order"]
[[claims]]
id = "E4"
source = "someone"
statement = "Segmentation is more robust with depth beside it."
attack = "pgd50"
eps = [1, 4]
task = "seg"
metric = "miou"
better = ["s+d"]
than = ["s"]
[[claims]]
id = "F1"
source = "someone else"
statement = "It is less so relative to clean images."
attack = "pgd50"
eps = [4]
task = "seg"
metric = "pixel_accuracy"
better = ["s"]
than = ["s+d"]
relative = true
[[claims]]
id = "T1"
source = "theory"
statement = "The rise of the loss is that of the first order."
[claims.measure]
attack = "theory"
variants = ["s+d"]
measure = "first_order"
quantity = "rise"
tasks = ["seg"]
eps = 0.25
ratio_to = "predicted"
reference = 1
within = 0.1
"""


def example(workdir: pathlib.Path, text: str = EXAMPLE, **settings) -> Study:
    """Writes the folder of a small study, in which s+d is more robust than s.

    Args:
      workdir: The folder.
      text: The study's file.
      **settings: Arguments of `write`.
    """
    file = workdir / "example.toml"
    workdir.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    study = study_file.load(str(file))
    write(workdir, study, **{"drop": _example_drop, **settings})
    return study


def _example_drop(variant, seed, attack, eps, task, attacked) -> float:
    harm = (0.2 if variant == "s" else 0.15) * attacked + 0.02
    return 0.2 + 0.01 * seed + harm * eps / 2


def write(
    workdir: pathlib.Path,
    study: Study,
    drop: Drop,
    *,
    images: int = 12,
    done: Callable[[str, int, str | None], bool] = lambda *cell: True,
    warnings: Callable[[str, int, str], list[str]] = lambda *cell: [],
) -> pathlib.Path:
    """Writes study.json, index.json and all folders of attacks; returns workdir.

    Args:
      workdir: The folder.
      study: The study.
      drop: How bad each cell is.
      images: The number of images with rows.
      done: Whether a cell (variant, seed, attack or None: training) is finished.
      warnings: The warnings of a cell's checks.
    """
    cells = []
    for variant, seed in itertools.product(study.variants, study.seeds):
        run = f"runs/{slug(variant.name)}-seed{seed}-{_hash(variant.name, seed)}"
        cells.append(_cell("train", variant.name, seed, None, run, done))
        for spec in study.attacks:
            if variant.name not in spec.variants:
                continue
            cell_key = (variant.name, seed, spec.name)
            folder = f"{run}/attacks/{slug(spec.name)}-{_hash(spec.name)}"
            cells.append(_cell("attack", *cell_key, folder, done))
            if done(*cell_key):
                fields = study.attack_fields(spec.name, variant.name, seed)
                config = AttackConfig(ckpt="-", **fields)
                tasks = variant.train["tasks"]
                _write_attack(
                    workdir / folder, config, tasks, cell_key, drop, images, warnings
                )
                if config.measure:
                    write_measures(workdir / folder, config.measure, tasks, seed)
    content = study.to_dict() | {"provenance": directory.environment()}
    files.write_json(workdir / "study.json", content)
    files.write_json(workdir / "index.json", {"study": study.name, "cells": cells})
    return workdir


def _cell(kind, variant, seed, attack, folder, done) -> dict:
    state = "done" if done(variant, seed, attack) else "missing"
    return {
        "kind": kind,
        "variant": variant,
        "seed": seed,
        "attack": attack,
        "folder": folder,
        "command": f"python -m mtr_tf.{kind} --seed={seed} --name='{variant}'",
        "state": state,
        "seconds": 12.5 if state == "done" else None,
        "log": f"logs/{slug(variant)}-seed{seed}-{attack or 'train'}.log",
    }


def _hash(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


# Attacks.


def _write_attack(folder, config, tasks, cell_key, drop, images, warnings) -> None:
    """Writes results.json, and cells/*.npz with rows and pictures."""
    if config.attack == ("none",):
        return
    variant, seed, _ = cell_key
    clean = _result(
        None, tasks, images, seed, lambda task: drop(*cell_key, 0.0, task, False)
    )
    facts = {"seed": seed, "dataset": "rooms", "split": config.split}
    facts |= {"interval_over": "images"}
    facts |= {"model_fingerprint": _hash(variant, seed), "source_fingerprint": None}
    facts |= {"warnings": warnings(*cell_key)}
    records = []
    for cell in make_cells(config, tasks):

        def task_drop(task, cell=cell):
            return drop(*cell_key, cell.eps, task, task in cell.tasks)

        result = _result(cell, tasks, images, seed, task_drop)
        paths = {
            "rows": _write_cell(folder, result),
            "clean_rows": _write_cell(folder, clean),
        }
        cell_records = results.make_records(clean, [result], facts, {"depth": "m"})
        records += [record | paths for record in cell_records]
    results.write(records, folder)


def _result(cell, tasks, images, seed, task_drop) -> Result:
    """Rows about as bad as `task_drop` says; the same images are hard for all cells."""
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(99).uniform(0.8, 1.2, images)
    rows, scores = {}, {}
    for task in tasks:
        badness = np.clip(
            hardness * task_drop(task) + rng.normal(0, 0.01, images), 0.001, 0.99
        )
        rows[task] = {m.name: _rows(m, badness) for m in TASKS[task].metrics}
        scores[task] = {
            m.name: {
                "value": float(m.value(rows[task][m.name].sum(axis=0))),
                "interval": [None, None],
            }
            for m in TASKS[task].metrics
        }
    return Result(cell, scores, images, _pictures(cell, tasks, task_drop), rows)


def _rows(metric, badness: np.ndarray) -> np.ndarray:
    """Rows `[images, K]`: of mIoU, counts of classes; else (sum, number of pixels)."""
    pixels = SIDE * SIDE
    if metric.name == "miou":
        hits = np.rint(pixels / CLASSES * (1 - badness))
        sizes = np.full((len(badness), 2 * CLASSES), pixels / CLASSES)
        return np.concatenate([np.repeat(hits[:, None], CLASSES, 1), sizes], axis=1)
    value = 1 - badness if metric.better == "higher" else 2 * badness
    count = 1.0 if metric.name == "loss" else pixels
    return np.stack([value * count, np.full(len(badness), count)], 1)


def _pictures(cell, tasks, task_drop) -> dict[str, np.ndarray]:
    """Painted discs on a floor; `task_drop` is the share of wrong pixels in outputs."""
    y, x = np.mgrid[:SIDE, :SIDE]
    discs = np.stack([np.hypot(y - 12, x - 6 * i - 6) < 6 for i in range(PICTURES)])
    image = np.where(discs[..., None], (200, 90, 60), (120, 140, 160)) + y[..., None]
    rng = np.random.default_rng(5)
    noise = rng.choice((-1, 1), image.shape) * (cell.eps if cell else 0)
    pictures = {"image": image}
    for task in tasks:
        target = np.where(discs[..., None], (20, 120, 180), (240, 200, 40))
        errors = rng.uniform(size=discs.shape) < task_drop(task)
        output = np.where(errors[..., None], (150, 30, 120), target)
        pictures |= {f"target/{task}": target, f"output/{task}": output}
    if cell:
        pictures |= {"adversarial": image + noise}
        pictures["perturbation"] = 128 + 127 * np.sign(noise)
    return {name: np.clip(a, 0, 255).astype(np.uint8) for name, a in pictures.items()}


def _write_cell(folder: pathlib.Path, result: Result) -> str:
    """Writes a cell as `cell_store` does; returns its path there."""
    text = result.cell.label + str(result.cell) if result.cell else "clean"
    name = f"cells/{_hash(text)}.npz"
    arrays = {f"picture/{name}": a for name, a in result.pictures.items()}
    for task, metric_rows in result.rows.items():
        arrays |= {f"row/{task}/{name}": a for name, a in metric_rows.items()}
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    np.savez(folder / name, **arrays)
    return name


# Measures.


def write_measures(
    folder: pathlib.Path, measures: Sequence[str], tasks: Sequence[str], seed: int
) -> None:
    """Writes measures.json of random gradients with a correlation of about 0.2."""
    rng = np.random.default_rng(seed)
    images, count = 12, len(tasks)
    common_part, task_part = (
        rng.normal(size=(images, 1, 300)),
        rng.normal(size=(images, count, 300)),
    )
    gradients = np.sqrt(0.2) * common_part + np.sqrt(0.8) * task_part
    gradients *= np.arange(1, count + 1)[:, None]
    records = _task_records(gradients, tasks, seed) if "tasks" in measures else []
    groups = [(task,) for task in tasks] + [tuple(tasks)] * (count > 1)
    for group in groups if "first_order" in measures else ():
        by_eps = {}
        for eps in (0.25, 1.0, 4.0):
            norm = rng.uniform(8, 10, images)
            rise = norm * eps / 255 / (1 + eps / 8)
            by_eps[eps] = {"norm": norm, "before": np.ones(images), "after": 1 + rise}
        records += measure_records.of_first_order(group, "linf", 1 / 255, by_eps, seed)
    for measure in {"pixels", "blocks"}.intersection(measures):
        records += _pixel_records(measure, tasks, seed)
    if "corruptions" in measures:
        records += _corruption_records(tasks, seed)
    facts = {"seed": seed, "dataset": "rooms", "split": "validation", "n": images}
    files.write_json(folder / "measures.json", [record | facts for record in records])


def _corruption_records(tasks, seed) -> list[dict]:
    task_objects = task_set(tasks)
    kinds = [("", 0), ("jpeg", 1), ("jpeg", 2), ("contrast", 1)]
    by_severity = {}
    for place, kind in enumerate(kinds):
        badness = np.linspace(0.1, 0.2, 12) * (1 + place)
        by_severity[kind] = {
            f"{task.name}/{metric.name}": _rows(metric, badness)
            for task in task_objects.values()
            for metric in task.all_metrics
        }
    return measure_records.of_corruptions(task_objects, by_severity, seed)


def _task_records(gradients, tasks, seed) -> list[dict]:
    from mtr_tf.measures import gradients as gradients_lib

    images, count, _ = gradients.shape
    norms = np.abs(gradients).sum(axis=2)
    sums = {
        "gram": np.einsum("nip,njp->nij", gradients, gradients),
        "l1": norms,
        "valid": np.ones((images, count), bool),
    }
    sets = gradients_lib.members(count)
    l1 = {}
    for normalisation in gradients_lib.NORMALISATIONS:
        scale = gradients_lib.scales(norms, normalisation)
        scaled = gradients * np.broadcast_to(scale, norms.shape)[..., None]
        l1[normalisation] = np.abs(np.einsum("sm,nmp->nsp", sets, scaled)).sum(axis=2)
    return measure_records.of_tasks(sums, l1, tasks, seed)


def _pixel_records(measure, tasks, seed) -> list[dict]:
    rng = np.random.default_rng(seed)
    counts, images, draws = (1, 4, 16, 64, 576), 12, 2
    norms, records = {}, []
    for count in counts:
        size = np.sqrt((1 + 0.05 * (count - 1)) / count)
        shape = (draws, images, len(tasks))
        norms[count] = {n: size * rng.uniform(0.9, 1.1, shape) for n in ("l2", "l1")}
    records += measure_records.of_pixel_gradients(measure, norms, tasks, seed)
    for task in tasks:
        rows_by_count = {}
        for count in counts:
            arrays = {}
            for metric in measure_records.shown_metrics(TASKS[task]):
                for kind, level in (
                    ("clean", 0.1),
                    ("attacked", 0.9 / (1 + count / 50)),
                ):
                    badness = np.clip(rng.normal(level, 0.02, draws * images), 0, 1)
                    rows = _rows(metric, badness).reshape(draws, images, -1)
                    arrays[f"{kind}/{metric.name}"] = rows
            rows_by_count[count] = arrays
        records += measure_records.of_pixel_attacks(
            measure, TASKS[task], rows_by_count, 8.0, seed
        )
    return records


def rows_of(
    study_results: Results, variant: str, seed: int, eps: float = 4.0
) -> np.ndarray:
    """The rows of seg's mean IoU under pgd50; at eps 0 those of clean images."""
    record = study_results.record(variant, seed, "pgd50", eps, "seg", "miou")
    return study_results.rows_of(record, eps)
