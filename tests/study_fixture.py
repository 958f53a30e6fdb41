# SPDX-License-Identifier: Apache-2.0
"""Makes the folder of a study as `mtr_tf.reproduce` leaves it, without any training.

Values are what the metrics make of the rows in cells/*.npz, as in a real study.
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
from mtr_tf.measures import corruption_records
from mtr_tf.measures import pixel_records
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
      **settings: Those of `write`.
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
      study: What is in it.
      drop: How bad each cell is.
      images: How many there are rows of.
      done: Whether a cell (variant, seed, attack or None: training) is finished.
      warnings: Those of a cell's checks.
    """
    cells = []
    for variant, seed in itertools.product(study.variants, study.seeds):
        run = f"runs/{slug(variant.name)}-seed{seed}-{_hash(variant.name, seed)}"
        cells.append(_cell("train", variant.name, seed, None, run, done))
        for spec in study.attacks:
            if variant.name not in spec.variants:
                continue
            about = (variant.name, seed, spec.name)
            folder = f"{run}/attacks/{slug(spec.name)}-{_hash(spec.name)}"
            cells.append(_cell("attack", *about, folder, done))
            if done(*about):
                fields = study.attack_fields(spec.name, variant.name, seed)
                config = AttackConfig(ckpt="-", **fields)
                tasks = variant.train["tasks"]
                _attack(workdir / folder, config, tasks, about, drop, images, warnings)
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


def _attack(folder, config, tasks, about, drop, images, warnings) -> None:
    """results.json, and cells/*.npz with rows and pictures."""
    if config.attack == ("none",):
        return
    variant, seed, _ = about
    clean = _result(
        None, tasks, images, seed, lambda task: drop(*about, 0.0, task, False)
    )
    facts = {"seed": seed, "dataset": "rooms", "split": config.split}
    facts |= {"interval_over": "images"}
    facts |= {"model_fingerprint": _hash(variant, seed), "source_fingerprint": None}
    facts |= {"warnings": warnings(*about)}
    records = []
    for cell in make_cells(config, tasks):

        def lost(task, cell=cell):
            return drop(*about, cell.eps, task, task in cell.tasks)

        result = _result(cell, tasks, images, seed, lost)
        files = {"rows": _write(folder, result), "clean_rows": _write(folder, clean)}
        made = results.make_records(clean, [result], facts, {"depth": "m"})
        records += [record | files for record in made]
    results.write(records, folder)


def _result(cell, tasks, images, seed, lost) -> Result:
    """Rows about as bad as `lost` says, the same images hard for all cells."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).uniform(0.8, 1.2, images)
    rows, scores = {}, {}
    for task in tasks:
        badness = np.clip(hard * lost(task) + rng.normal(0, 0.01, images), 0.001, 0.99)
        rows[task] = {m.name: _rows(m, badness) for m in TASKS[task].metrics}
        scores[task] = {
            m.name: {
                "value": float(m.value(rows[task][m.name].sum(axis=0))),
                "interval": [None, None],
            }
            for m in TASKS[task].metrics
        }
    return Result(cell, scores, images, _pictures(cell, tasks, lost), rows)


def _rows(metric, badness: np.ndarray) -> np.ndarray:
    """`[images, K]`: counts of classes, else (sum, number of pixels)."""
    pixels = SIDE * SIDE
    if metric.name == "miou":
        right = np.rint(pixels / CLASSES * (1 - badness))
        every = np.full((len(badness), 2 * CLASSES), pixels / CLASSES)
        return np.concatenate([np.repeat(right[:, None], CLASSES, 1), every], axis=1)
    value = 1 - badness if metric.better == "higher" else 2 * badness
    count = 1.0 if metric.name == "loss" else pixels
    return np.stack([value * count, np.full(len(badness), count)], 1)


def _pictures(cell, tasks, lost) -> dict[str, np.ndarray]:
    """A disc on a floor, painted; outputs have so many wrong pixels as are lost."""
    y, x = np.mgrid[:SIDE, :SIDE]
    discs = np.stack([np.hypot(y - 12, x - 6 * i - 6) < 6 for i in range(PICTURES)])
    image = np.where(discs[..., None], (200, 90, 60), (120, 140, 160)) + y[..., None]
    rng = np.random.default_rng(5)
    noise = rng.choice((-1, 1), image.shape) * (cell.eps if cell else 0)
    found = {"image": image}
    for task in tasks:
        target = np.where(discs[..., None], (20, 120, 180), (240, 200, 40))
        wrong = rng.uniform(size=discs.shape) < lost(task)
        output = np.where(wrong[..., None], (150, 30, 120), target)
        found |= {f"target/{task}": target, f"output/{task}": output}
    if cell:
        found |= {"adversarial": image + noise}
        found["perturbation"] = 128 + 127 * np.sign(noise)
    return {name: np.clip(a, 0, 255).astype(np.uint8) for name, a in found.items()}


def _write(folder: pathlib.Path, result: Result) -> str:
    """Writes a cell as `cell_store` does; returns its path there."""
    about = result.cell.label + str(result.cell) if result.cell else "clean"
    name = f"cells/{_hash(about)}.npz"
    arrays = {f"picture/{name}": a for name, a in result.pictures.items()}
    for task, by_metric in result.rows.items():
        arrays |= {f"row/{task}/{name}": a for name, a in by_metric.items()}
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    np.savez(folder / name, **arrays)
    return name


# Measures.


def write_measures(
    folder: pathlib.Path, measures: Sequence[str], tasks: Sequence[str], seed: int
) -> None:
    """measures.json of random gradients with a correlation of about 0.2."""
    rng = np.random.default_rng(seed)
    images, count = 12, len(tasks)
    common, own = (
        rng.normal(size=(images, 1, 300)),
        rng.normal(size=(images, count, 300)),
    )
    gradients = np.sqrt(0.2) * common + np.sqrt(0.8) * own
    gradients *= np.arange(1, count + 1)[:, None]
    records = _of_tasks(gradients, tasks, seed) if "tasks" in measures else []
    groups = [(task,) for task in tasks] + [tuple(tasks)] * (count > 1)
    for group in groups if "first_order" in measures else ():
        found = {}
        for eps in (0.25, 1.0, 4.0):
            norm = rng.uniform(8, 10, images)
            rise = norm * eps / 255 / (1 + eps / 8)
            found[eps] = {"norm": norm, "before": np.ones(images), "after": 1 + rise}
        records += measure_records.of_first_order(group, "linf", 1 / 255, found, seed)
    for measure in {"pixels", "blocks"}.intersection(measures):
        records += _of_pixels(measure, tasks, seed)
    if "corruptions" in measures:
        records += _of_corruptions(tasks, seed)
    facts = {"seed": seed, "dataset": "rooms", "split": "validation", "n": images}
    files.write_json(folder / "measures.json", [record | facts for record in records])


def _of_corruptions(tasks, seed) -> list[dict]:
    known = task_set(tasks)
    kinds = [("", 0), ("jpeg", 1), ("jpeg", 2), ("contrast", 1)]
    found = {}
    for place, kind in enumerate(kinds):
        badness = np.linspace(0.1, 0.2, 12) * (1 + place)
        found[kind] = {
            f"{task.name}/{metric.name}": _rows(metric, badness)
            for task in known.values()
            for metric in task.all_metrics
        }
    return corruption_records.of_corruptions(known, found, seed)


def _of_tasks(gradients, tasks, seed) -> list[dict]:
    from mtr_tf.measures import gradients as gradients_lib

    images, count, _ = gradients.shape
    own = np.abs(gradients).sum(axis=2)
    found = {
        "gram": np.einsum("nip,njp->nij", gradients, gradients),
        "l1": own,
        "valid": np.ones((images, count), bool),
    }
    sets = gradients_lib.members(count)
    l1 = {}
    for how in gradients_lib.NORMALISATIONS:
        scale = gradients_lib.scales(own, how)
        scaled = gradients * np.broadcast_to(scale, own.shape)[..., None]
        l1[how] = np.abs(np.einsum("sm,nmp->nsp", sets, scaled)).sum(axis=2)
    return measure_records.of_tasks(found, l1, tasks, seed)


def _of_pixels(measure, tasks, seed) -> list[dict]:
    rng = np.random.default_rng(seed)
    counts, images, draws = (1, 4, 16, 64, 576), 12, 2
    norms, records = {}, []
    for count in counts:
        size = np.sqrt((1 + 0.05 * (count - 1)) / count)
        shape = (draws, images, len(tasks))
        norms[count] = {n: size * rng.uniform(0.9, 1.1, shape) for n in ("l2", "l1")}
    records += pixel_records.of_pixel_gradients(measure, norms, tasks, seed)
    for task in tasks:
        attacked = {}
        for count in counts:
            arrays = {}
            for metric in pixel_records.shown_metrics(TASKS[task]):
                for kind, bad in (("clean", 0.1), ("attacked", 0.9 / (1 + count / 50))):
                    badness = np.clip(rng.normal(bad, 0.02, draws * images), 0, 1)
                    rows = _rows(metric, badness).reshape(draws, images, -1)
                    arrays[f"{kind}/{metric.name}"] = rows
            attacked[count] = arrays
        records += pixel_records.of_pixel_attacks(
            measure, TASKS[task], attacked, 8.0, seed
        )
    return records


def rows_of(found: Results, variant: str, seed: int, eps: float = 4.0) -> np.ndarray:
    """What mean IoU of seg is of under pgd50; at eps 0 on clean images."""
    record = found.record(variant, seed, "pgd50", eps, "seg", "miou")
    return found.rows_of(record, eps)
