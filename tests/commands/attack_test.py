# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.attack` from flags to files, on a tiny trained model and made-up pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
from concurrent import futures

import keras
import numpy as np
import process_fixture
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf import attack_job
from mtr_tf import data
from mtr_tf import executors
from mtr_tf import files
from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.api.results import Results
from mtr_tf.attack_job import job as job_lib
from mtr_tf.attack_job import resolving
from mtr_tf.attacks import kinds
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_store
from mtr_tf.evaluation import evaluator
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import plan
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation import sweep
from mtr_tf.executors import command
from mtr_tf.models import folding
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.show import side_by_side
from mtr_tf.training import job

SIZE = 16
TASKS = ("seg", "depth")
INFO = DatasetInfo(
    name="blobs",
    image_shape=(SIZE, SIZE, 3),
    classes=("wall", "ball"),
    colors=((40, 40, 200), (240, 160, 20)),
    tasks=("seg", "depth", "autoencoder"),
    splits={"train": 32, "validation": 11},
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    ranges={"depth": (1.0, 3.0)},
)
SETTINGS = {
    "attack": ("pgd",),
    "eps": (1.0, 2.0, 4.0, 8.0),
    "steps": 3,
    "batch_size": 4,
    "name": "test",
    "checks": False,
}


def blobs(split: str) -> Columns:
    """Bright discs, nearer the brighter, before a dark wall 3 m away."""
    n = INFO.splits[split]
    rng = np.random.default_rng(len(split))
    y, x = np.mgrid[:SIZE, :SIZE]
    center = rng.uniform(3, SIZE - 3, (2, n, 1, 1))
    ball = (y - center[0]) ** 2 + (x - center[1]) ** 2 < 16
    light = rng.uniform(0.55, 0.95, (n, 1, 1))
    gray = np.where(ball, light, 0.4) + rng.normal(0, 0.03, ball.shape)
    depth = np.where(ball, 4 - 3 * light, 3.0)
    return Columns(
        images=np.rint(255 * gray.clip(0, 1))[..., None].repeat(3, -1).astype(np.uint8),
        targets={
            "seg": ball.astype(np.uint8),
            "depth": depth[..., None].astype(np.float32),
        },
        masks={},
    )


def open_blobs(*, image_size=None, data_dir=None, tasks=None) -> Source:
    return Source(INFO, blobs)


@pytest.fixture(autouse=True, scope="module")
def blobs_known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "blobs", open_blobs)
        yield


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model = models.build("tiny", TASKS, INFO.image_shape, 2)
    batch = batching.gather(blobs("train"), TASKS, np.arange(32))
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = model(batch["image"], training=True)
            losses = tasks_lib.task_losses(
                TASKS, outputs, batch["targets"], batch["masks"]
            )
            total = tf.reduce_sum(tf.add_n(list(losses.values())))
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    for _ in range(60):
        step()
    return model


@pytest.fixture
def run_directory(trained, tmp_path) -> pathlib.Path:
    return write_run(trained, tmp_path / "run")


def write_run(model: keras.Model, folder: pathlib.Path) -> pathlib.Path:
    config = TrainConfig(tasks=TASKS, dataset="blobs", model="tiny")
    directory.write_config(folder, config)
    model.save(folder / "model.keras")
    return folder


def _fingerprint(folder: pathlib.Path) -> str:
    return loading.load_run(str(folder)).fingerprint


def run_attack(folder: pathlib.Path, **changes) -> list[dict]:
    config = AttackConfig(ckpt=str(folder), **{**SETTINGS, **changes})
    attack_job.attack(config)
    results = (
        folder
        / "attacks"
        / (config.name or attack_job.default_name(config, _fingerprint(folder)))
    )
    return json.loads((results / "results.json").read_text())


def cell_times(folder: pathlib.Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("cells/*")}


def test_from_run_to_results_and_again(run_directory, monkeypatch):
    settings = {"attack_tasks": ("seg",), "eps": (2.0, 8.0)}
    records = run_attack(run_directory, **settings)
    folder = run_directory / "attacks" / "test"
    for name in ("results.csv", "settings.json", "curves.png", "gallery.png"):
        assert (folder / name).stat().st_size > 500, name
    events = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    curve = events.Tensors("seg_by_eps/miou, pgd on seg")
    assert {0, 200, 800} <= {event.step for event in curve}
    tags = events.Tags()["tensors"]
    assert {"depth_by_eps/pictures, pgd on seg", "robustness/curves"} <= {*tags}

    assert len(records) == 2 * (3 + 4)  # Radii; metrics of seg and of depth.
    assert all(record["n"] == 11 for record in records)
    seg_records = [r for r in records if r["task"] == "seg"]
    losses = [r["attacked_value"] for r in seg_records if r["metric"] == "loss"]
    clean = next(r["clean"] for r in seg_records if r["metric"] == "loss")
    assert [clean, *losses] == sorted({clean, *losses})  # Each radius raises it more.
    assert all(
        r["relative_vulnerability"] > 0 for r in seg_records if r["metric"] == "loss"
    )

    # The same command again: no model is called, nothing changes.
    times, text = cell_times(folder), (folder / "results.json").read_bytes()
    monkeypatch.setattr(sweep, "Evaluator", None)
    assert run_attack(run_directory, **settings) == records
    assert cell_times(folder) == times
    assert (folder / "results.json").read_bytes() == text


@pytest.mark.slow
def test_a_run_that_may_only_be_read_is_attacked_into_a_folder_of_ones_own(
    run_directory, tmp_path, unplotted
):
    (run_directory / "attacks").write_text("")  # Nothing can be written there.

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in (run_directory, *run_directory.rglob("*"))
        }

    old_state, settings = state(), SETTINGS | SMALL | {"name": ""}
    config = AttackConfig(ckpt=str(run_directory), **settings)
    with pytest.raises(InputError) as error:
        attack_job.attack(config)
    assert re.fullmatch(
        rf"{run_directory}/attacks/\S+ cannot be written: .*\. Let results go to a "
        r"folder of yours with --out=DIR, or get permission to write there\.",
        str(error.value),
    )
    out = tmp_path / "mine"
    for part in ("1/2", "2/2", ""):
        attack_job.attack(dataclasses.replace(config, out=str(out), part=part))
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "settings.json", "cells"} <= names
    assert len(json.loads((out / "results.json").read_text())) == 2 * (3 + 4)
    cells = cell_times(out)
    attack_job.attack(dataclasses.replace(config, out=str(out)))
    assert cell_times(out) == cells
    assert state() == old_state
    for path in (run_directory, run_directory / "model.keras"):
        with pytest.raises(InputError, match="--out must be a new folder, or one of"):
            attack_job.resolve(dataclasses.replace(config, out=str(path)))
    attacked_models = side_by_side.read([str(out)])
    assert [model.label for model in attacked_models] == ["mine"]
    origin = json.loads((out / "settings.json").read_text())
    assert (
        origin["train"]
        == json.loads((run_directory / "config.json").read_text())["train"]
    )
    (out / "settings.json").write_text(json.dumps({"model_fingerprint": "another"}))
    content = (out / "results.json").read_bytes()
    with pytest.raises(InputError, match="holds those of another model, or of other"):
        attack_job.attack(dataclasses.replace(config, out=str(out)))
    assert (out / "results.json").read_bytes() == content


@pytest.mark.slow
def test_images_that_no_attack_moved_are_told_in_each_record(
    run_directory, trained, unplotted
):
    """Outputs that do not depend on the image have no gradient to follow."""
    model = keras.models.clone_model(trained)
    for weight in model.weights:
        weight.assign(tf.zeros_like(weight))
    model.save(run_directory / "model.keras")
    warning = "on seg at eps 2 left 11 of 11 images unchanged. This does not mean"
    settings = {"attack": ("fgsm", "pgd"), "eps": (0.0, 2.0), "attack_tasks": ("seg",)}
    config = AttackConfig(ckpt=str(run_directory), **SETTINGS | settings)
    assert warning in attack_job.attack(config)
    folder = run_directory / "attacks" / "test"
    records = json.loads((folder / "results.json").read_text())
    assert {record["attack"] for record in records} == {"fgsm", "pgd"}
    for record in records:
        warnings = " ".join(record["warnings"])
        assert (warning in warnings) == (record["eps"] > 0), record


@pytest.mark.slow
def test_a_task_without_any_target_is_told(run_directory, monkeypatch, unplotted):
    masks = {"seg": np.zeros((11, SIZE, SIZE), bool)}
    source = Source(INFO, lambda split: dataclasses.replace(blobs(split), masks=masks))
    monkeypatch.setitem(data.DATASETS, "blobs", lambda **options: source)
    settings = {"attack": ("fgsm",), "eps": (2.0,), "attack_tasks": ("depth",)}
    config = AttackConfig(ckpt=str(run_directory), **SETTINGS | settings)
    warning = "seg has no target in any of the 11 images"
    assert warning in attack_job.attack(config)
    records = json.loads((run_directory / "attacks/test/results.json").read_text())
    for record in records:
        assert warning in " ".join(record["warnings"])
        assert (record["clean"] is None) == (record["task"] == "seg")


def test_data_that_have_changed_since_the_training_are_told(run_directory):
    config = AttackConfig(ckpt=str(run_directory))
    run = loading.load_run(str(run_directory))
    content = json.loads((run_directory / "config.json").read_text())

    def changes(source=open_blobs(), config=config, **old_facts):  # noqa: B008
        facts = job.data_facts(open_blobs(), 32)
        facts = {split: facts[split] | old_facts.get(split, {}) for split in facts}
        files.write_json(run_directory / "config.json", content | {"data": facts})
        return loading.data_changes(config, run, source)

    assert loading.data_changes(config, run, open_blobs()) == []  # Of an older run.
    assert changes() == []
    (sentence,) = changes(train={"examples": 30}, validation={"means": [0.1, 0.2]})
    assert (
        "(train had 30 examples and has 32; the first or last image of val" in sentence
    )
    assert "trained on images of validation" in sentence
    large_config = dataclasses.replace(config, image_size="32")  # Has other means.
    assert changes(config=large_config, validation={"means": [0.1, 0.2]}) == []
    other_info = dataclasses.replace(INFO, name="others")
    assert changes(Source(other_info, blobs), train={"examples": 30}) == []
    changes(validation={"examples": 10})
    (warning, *_) = attack_job.resolve(config).warnings
    assert "validation had 10 examples and has 11" in warning
    for means in (["a", 0.1], [None, 0.1], [[0.1], 0.1], [], 0.1, {"a": 0.1}):
        with pytest.raises(InputError, match=r"two numbers, or null, as the means of"):
            changes(validation={"means": means})
    assert changes(validation={"means": None}) == []


@pytest.mark.slow
@pytest.mark.parametrize("buildings", [4, 2])
def test_intervals_are_over_groups_where_there_are_some(
    run_directory, monkeypatch, unplotted, buildings
):
    groups = Groups([f"b{i % buildings}" for i in range(11)], "buildings")

    def load(split):
        return dataclasses.replace(blobs(split), groups=groups)

    source = Source(INFO, load)
    monkeypatch.setitem(data.DATASETS, "blobs", lambda **options: source)
    settings = SETTINGS | {"name": f"{buildings} buildings".replace(" ", "_")}
    # Without an interval, clean images are enough.
    settings |= {"eps": (2.0 if buildings == 4 else 0.0,)}
    settings |= {"attack": ("fgsm",), "attack_tasks": ("seg",)}
    text = attack_job.attack(AttackConfig(ckpt=str(run_directory), **settings))
    folder = run_directory / "attacks" / settings["name"]
    for record in json.loads((folder / "results.json").read_text()):
        assert record["interval_over"] == f"{buildings} buildings"
        with np.load(folder / record["rows"]) as arrays:
            np.testing.assert_array_equal(arrays["unit"], np.arange(11) % buildings)
            rows = arrays[f"row/{record['task']}/{record['metric']}"]
        if buildings == 2:
            assert record["attacked_interval"] == [None, None]
            continue
        (metric,) = (
            metric
            for metric in tasks_lib.TASKS[record["task"]].metrics
            if metric.name == record["metric"]
        )
        units = resampling.Units(np.arange(11) % 4, "")
        expected = intervals.of_metric(metric, rows, units, seed=0)
        np.testing.assert_allclose(record["attacked_interval"], expected)
    sentence = "intervals: 95 %, over 4 buildings"
    if buildings == 2:
        sentence = (
            "no intervals: they need 3 or more to draw from, but there are 2 build"
        )
    assert sentence in text


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_a_damaged_cell_is_redone(
    run_directory, monkeypatch, unplotted
):
    settings = {"attack": ("fgsm",), "eps": (2.0, 0.0), "attack_tasks": ("seg",)}
    expected = run_attack(run_directory, **settings, name="whole")
    calls = []

    class Interrupted(evaluator.Evaluator):
        def run(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 3:  # The clean images and eps 0 are done.
                raise KeyboardInterrupt
            return super().run(*args, **kwargs)

    monkeypatch.setattr(sweep, "Evaluator", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_attack(run_directory, **settings, name="cut")
    folder = run_directory / "attacks" / "cut"
    assert not (folder / "results.json").exists()
    times = cell_times(folder)
    assert len(times) == 4  # Two files each.
    assert run_attack(run_directory, **settings, name="cut") == expected
    assert len(calls) == 3 + 1
    whole_folder = run_directory / "attacks" / "whole"
    for name in ("results.json", "results.csv"):
        assert (folder / name).read_bytes() == (whole_folder / name).read_bytes(), name
    assert cell_times(folder).items() >= times.items()

    for record in expected:
        if record["eps"] == 0:
            assert record["attacked_value"] == record["clean"]

    # A truncated file and damaged pictures are done again, with the same result.
    first, second, *_ = folder.glob("cells/*.json")
    first.write_text(first.read_text()[:50])
    second.with_suffix(".npz").write_bytes(b"PK\3\4")
    assert run_attack(run_directory, **settings, name="cut") == expected
    assert len(calls) == 3 + 1 + 2


def test_other_settings_other_data_other_weights_make_other_cells(run_directory):
    base = AttackConfig(ckpt=str(run_directory), **SETTINGS)
    cell = plan.make_cells(base, TASKS)[0]
    columns = blobs("validation")
    other_depth = Columns(columns.images, {**columns.targets}, {})
    other_depth.targets["depth"] = columns.targets["depth"] + np.float32(1e-3)
    fingerprint = cell_store.data_fingerprint
    assert fingerprint(columns, 5) == fingerprint(blobs("validation"), 5)
    assert fingerprint(columns, 5) != fingerprint(columns, 6)
    assert fingerprint(columns, 5) != fingerprint(other_depth, 5)
    other_seg = Columns(columns.images, {**columns.targets}, {})
    other_seg.targets["seg"] = columns.targets["seg"].copy()
    # The target of a targeted attack on image 0.
    other_seg.targets["seg"][5] = 1 - other_seg.targets["seg"][5]
    assert fingerprint(other_seg, 5) == fingerprint(columns, 5)
    assert fingerprint(other_seg, 5, True) != fingerprint(columns, 5, True)
    assert fingerprint(columns, 11, True) == fingerprint(columns, 11)
    folder = pathlib.Path("unused")
    names = {
        cell_store.Store(folder, facts)._path(cell)
        for facts in ({"model": "a"}, {"model": "b"}, {"model": "a", "seed": 1})
    }
    assert len(names) == 3


@pytest.mark.slow
def test_examples_are_saved_as_they_are(run_directory, unplotted):
    settings = {"attack": ("fgsm",), "eps": (4.0,), "attack_tasks": ("all",)}
    run_attack(run_directory, **settings)
    run_attack(run_directory, **settings, save_examples=5)  # Done again, to save.
    folder = run_directory / "attacks" / "test" / "examples"
    paths = {path.name.rpartition("_")[0]: path for path in folder.glob("*.npz")}
    assert set(paths) == {"clean", "fgsm_seg+depth_eps4"}
    with np.load(paths["fgsm_seg+depth_eps4"]) as arrays:
        columns = blobs("validation")
        np.testing.assert_allclose(arrays["image"], columns.images[:5] / 255, 1e-6)
        change = np.abs(arrays["adversarial"] - arrays["image"])
        assert change.max() == pytest.approx(4 / 255, rel=1e-4)
        assert arrays["output/seg"].shape == (5, SIZE, SIZE, 2)


def check_rows(folder, records):
    """Asserts that the files of each record hold the rows of its values."""
    for record in records:
        metrics = {m.name: m for m in tasks_lib.TASKS[record["task"]].metrics}
        for file, field in (("rows", "attacked_value"), ("clean_rows", "clean")):
            with np.load(folder / record[file]) as arrays:
                rows = arrays[f"row/{record['task']}/{record['metric']}"]
            value = float(metrics[record["metric"]].value(rows.sum(axis=0)))
            assert value == pytest.approx(record[field], rel=1e-5)


def a_job(cells=(), **settings) -> attack_job.Job:
    """A job with all that titles, details and printed measures depend on."""
    subject = types.SimpleNamespace(
        info=types.SimpleNamespace(name="blobs"),
        units=types.SimpleNamespace(over="images"),
        num_examples=3,
    )
    return attack_job.Job(
        config=AttackConfig(ckpt="runs/a", **settings),
        subject=subject,
        cells=cells,
        measures=None,
        provenance=types.SimpleNamespace(to_dict=dict),
        warnings=(),
        checkpoint_step=None,
        folder=pathlib.Path("unused"),
        predictions=None,
        images="3 images",
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step_size": 2 / 255}, "--step_size is in levels .*, give --step_size=2$"),
        ({"step_size": 2 / 255, "attack": ("apgd",)}, ""),  # Has steps of its own.
        ({"step_size": 2 / 255, "norm": "l2"}, ""),
        ({"step_size": 0.05, "steps": 200}, ""),  # They reach the radius.
        ({"step_size": 0.05, "eps": (1.0,), "steps": 10}, ""),  # 12.75 is never meant.
        (
            {
                "step_size": 2 / 255,
                "attack": ("worst",),
                "ensemble": ("fgsm", "square"),
            },
            "",
        ),
        ({"step_size": 2.0}, ""),
        ({"eps": (8 / 255,)}, "--eps is in levels of .* give --eps=8$"),
    ],
)
def test_lengths_that_look_as_if_of_images_from_0_to_1_are_told(settings, said):
    config = AttackConfig(ckpt="x", **settings)
    sentences = [*resolving._small_radii(config), *resolving._small_steps(config)]
    assert len(sentences) == bool(said)
    assert all(re.search(said, sentence) for sentence in sentences)


def test_titles_say_on_which_model_and_which_part_of_the_output():
    prefix, _ = a_job().title.split("\n")
    assert prefix == "runs/a on 3 images of blobs validation"
    part = {"attack_classes": ("ball", "wall"), "attack_block": "4x4"}
    title = a_job(source_ckpt="runs/b", targets="own", **part).title.split("\n")[0]
    assert title.removeprefix(prefix) == (
        ", agreement with the model's own clean outputs (--targets=own); attacked "
        "images made on runs/b; output pixels 4x4 attacked; only pixels of ball, wall "
        "attacked; metrics over all pixels"
    )
    assert a_job(attack_pixels=5).details == (
        "5 output pixels attacked; metrics over all pixels"
    )


def test_titles_say_which_tasks_a_part_of_the_output_is_of():
    settings = {"attack_tasks": ("all",), "attack_classes": ("ball",)}
    tasks = ("seg", "depth")
    config = AttackConfig(ckpt="runs/a", **settings)
    cells = tuple(plan.make_cells(config, tasks, ("wall", "ball")))
    suffix = "; metrics over all pixels"
    assert a_job(cells, **settings).details == (
        f"only pixels of ball attacked (of seg; depth everywhere){suffix}"
    )
    tasks = ("seg", *(f"depth{number}" for number in range(4)))
    records = tasks_lib.task_set([tasks_lib.Task(t, kind="numbers") for t in tasks[1:]])
    many_tasks = tasks_lib.TaskSet((tasks_lib.TASKS["seg"], *records.values()))
    many_cells = tuple(plan.make_cells(config, many_tasks, ("wall", "ball")))
    assert "(of seg; the others everywhere)" in a_job(many_cells, **settings).details
    pixel_settings = {"attack_tasks": ("all",), "attack_pixels": 5}
    assert a_job(cells, **pixel_settings).details == f"5 output pixels attacked{suffix}"


@pytest.mark.parametrize("form", ["json", "csv", "text"])
def test_measures_are_printed_in_the_format_that_is_asked_for(monkeypatch, form):
    monkeypatch.setattr(job_lib.measure_files, "write", lambda *arguments: "TABLE")
    records = [{"quantity": "rise", "value": 0.5}]
    settings = types.SimpleNamespace(measures=("first_order",), of_channels={})
    joint_text, text = (
        a_job(cells, format=form)._write_measures(settings, records)
        for cells in (("an attack",), ())
    )
    if form == "text":
        assert joint_text == text
        assert "TABLE" in text
        return
    assert not joint_text
    table = Results("", [], records).table(form)
    assert table == text
    if form == "json":
        assert json.loads(text) == records
    else:
        assert text.splitlines() == ["quantity,value", "rise,0.5"]


def test_without_labels_numbers_are_painted_as_far_as_clean_outputs_reach():
    columns = dataclasses.replace(blobs("validation"), masks={})
    columns.targets["depth"][:2, :2] = np.nan
    tasks = tasks_lib.task_set(TASKS)
    for ranges, expected in (({}, None), ({"depth": (0.0, 9.0)}, (0.0, 9.0))):
        info = dataclasses.replace(INFO, ranges=ranges)
        new_ranges = resolving._with_ranges(info, columns, tasks).ranges
        assert set(new_ranges) == {"depth"}
        depths = np.nanpercentile(columns.targets["depth"], (2, 98))
        assert new_ranges["depth"] == (expected or pytest.approx(tuple(depths)))


@pytest.mark.slow
def test_objectives_transfer_and_the_worst(
    run_directory, tmp_path, unplotted, monkeypatch
):
    """One setting of each kind, and the orders that must hold between losses."""
    folder = run_directory / "attacks" / "test"
    settings = {"attack_tasks": ("seg",), "eps": (8.0,), "steps": 4, "queries": 10}

    def losses(**changes):
        records = run_attack(run_directory, **settings | changes)
        check_rows(folder, records)
        return {
            r["attack"]: (r["clean"], r["attacked_value"])
            for r in records
            if (r["task"], r["metric"]) == ("seg", "loss")
        }

    attack = ("pgd", "worst")
    by_attack = losses(attack=attack, ensemble=("pgd", "square"), attack_tasks=("s+d",))
    clean, pgd = by_attack["pgd"]
    assert by_attack["worst"][1] >= pgd * 0.9 > clean * 0.9
    assert set(by_attack) == set(attack)
    by_attack = losses(attack_loss=("own", "js"), balance=("sum", "dgba"))
    assert set(by_attack) == {"pgd", "pgd-js"}  # One task: nothing to balance.
    by_attack = losses(attack_loss=("js",), balance=("dgba",), attack_tasks=("s+d",))
    assert set(by_attack) == {"pgd-js-dgba"}
    assert len(list(folder.glob("events*"))) == 1
    by_attack = losses(attack_classes=("ball",), attack_block="4x4", fast=True)
    assert by_attack["pgd"][1] > clean
    bfloat16_loss = losses(fast=True)["pgd"][1]
    changes = {"fast": True, "name": "float16"}
    with monkeypatch.context() as patch:  # As on a V100.
        patch.setattr(folding, "half_type", lambda: "float16")
        records = run_attack(run_directory, **settings | changes)
    assert {record["fast"] for record in records} == {"float16"}
    (float16_loss,) = (
        record["attacked_value"]
        for record in records
        if (record["task"], record["metric"]) == ("seg", "loss")
    )
    assert float16_loss == pytest.approx(bfloat16_loss, rel=0.02)
    # On another machine they are known, and what they were made in.
    assert run_attack(run_directory, **settings | changes) == records

    other_model = models.build("tiny", TASKS, INFO.image_shape, 2, seed=9)
    other_model.save(tmp_path / "other.keras")
    transfer = losses(source_ckpt=str(tmp_path / "other.keras"))
    assert abs(transfer["pgd"][1] - clean) < 0.5 * (pgd - clean)

    records = run_attack(run_directory, **settings | {"targeted": True})
    record = next(r for r in records if (r["task"], r["metric"]) == ("seg", "loss"))
    assert record["attack"] == "pgd-targeted"
    assert record["wanted_value"] < record["wanted_clean"]


MEAN, STD = (0.45, 0.5, 0.6), (0.02, 0.04, 0.05)


@pytest.mark.slow
def test_the_released_scale_is_that_of_the_attacked_model(tmp_path, unplotted):
    """Not that of the data set: converted models have another."""
    model = models.build("tiny", TASKS, INFO.image_shape, 2, mean=MEAN, std=STD)
    folder = write_run(model, tmp_path / "run")
    records = run_attack(
        folder,
        attack=("pgd_released", "pgd_released_start", "pgd_released_scale"),
        attack_tasks=("seg",),
        eps=(4.0,),
        num_examples=4,
        save_examples=4,
    )
    warnings = {r["attack"]: r["warnings"] for r in records}
    assert "does not stay within eps" not in "".join(warnings["pgd_released_start"])
    # Black would move by 255 (.6 - .05) levels.
    for name in ("pgd_released", "pgd_released_scale"):
        assert "up to 140 levels" in "".join(warnings[name])
        (path,) = folder.glob(f"attacks/test/examples/{name}_seg_*.npz")
        with np.load(path) as arrays:
            x, adversarial = arrays["image"], arrays["adversarial"]
        radius = 2 * 4 / 255 * np.array(STD)
        # Far from the mean, the formulas in `attacks.released` fix the result.
        for mask, expected in (
            (x > np.add(MEAN, STD) + radius, x - radius),
            (x < np.subtract(MEAN, STD) - radius, np.subtract(MEAN, STD) + 0 * x),
        ):
            assert mask.any()
            np.testing.assert_allclose(adversarial[mask], expected[mask], atol=1e-6)
    (path,) = folder.glob("attacks/test/examples/pgd_released_start_seg_*.npz")
    with np.load(path) as arrays:
        change = np.abs(arrays["adversarial"] - arrays["image"])
    assert change.max() == pytest.approx(4 / 255, rel=1e-4)


def test_the_released_scale_needs_a_run(run_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.keras"
    keras.saving.load_model(run_directory / "model.keras").save(path)
    settings = {"eps": (4.0,), "num_examples": 2, "checks": False}
    for changes in (
        {"ckpt": str(path), "dataset": "blobs"},
        {"ckpt": str(run_directory), "source_ckpt": str(path)},
    ):
        config = AttackConfig(**settings, **changes, attack=("pgd_released",))
        with pytest.raises(InputError, match="--attack=pgd_released needs the mean"):
            attack_job.attack(config)
    config = AttackConfig(
        ckpt=str(run_directory), **settings, attack=("pgd_released",), norm="l2"
    )
    with pytest.raises(InputError, match="pgd_released needs --norm=linf"):
        attack_job.attack(config)
    assert not list(tmp_path.glob("**/attacks"))


@pytest.mark.slow
def test_a_keras_file_with_one_output_needs_its_task(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.keras"
    keras.Model(trained.inputs, trained.output["depth"]).save(path)
    settings = {"attack": ("fgsm",), "eps": (4.0,), "dataset": "blobs"}
    with pytest.raises(InputError, match="--tasks"):
        attack_job.attack(AttackConfig(ckpt=str(path), **settings))
    with pytest.raises(InputError, match="--dataset"):
        attack_job.attack(AttackConfig(ckpt=str(path), tasks=("depth",)))
    assert not list(tmp_path.glob("**/attacks"))
    text = attack_job.attack(AttackConfig(ckpt=str(path), tasks=("d",), **settings))
    assert "depth mae [m], lower is better" in text
    assert list(tmp_path.glob("**/attacks/fgsm_linf_4_*/results.json"))


@pytest.mark.slow
def test_l2_other_precision_and_a_few_pixels(run_directory, unplotted):
    settings = {
        "attack": ("fgsm",),
        "norm": "l2",
        "eps": (0.5,),
        "attack_tasks": ("d",),
        "attack_pixels": 20,
        "precision": "mixed_bfloat16",
        "save_examples": 2,
        "num_examples": 3,
    }
    records = run_attack(run_directory, **settings)
    assert {(r["norm"], r["eps"], r["n"]) for r in records} == {("l2", 0.5, 3)}
    (path,) = run_directory.glob("attacks/test/examples/fgsm*")
    with np.load(path) as arrays:
        change = arrays["adversarial"].astype(np.float64) - arrays["image"]
    lengths = np.sqrt((change**2).sum(axis=(1, 2, 3)))
    assert (lengths <= 0.5 + 1e-6).all()
    assert lengths.max() > 0.3
    precise_records = run_attack(run_directory, **settings | {"precision": "own"})
    assert precise_records != records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack_tasks": ("seg+normal",)}, "normal.*has only.*seg, depth"),
        ({"attack_tasks": ("segg",)}, "Did you mean 'seg'"),
        ({"split": "validaton"}, "Did you mean 'validation'"),
        ({"tasks": ("autoencoder",)}, "autoencoder.*has only.*seg, depth"),
        ({"attack_pixels": 257}, "from 1 to 256.*257"),
        ({"dataset": "blob"}, "blob"),
        ({"attack_loss": ("cosPGD",)}, "Did you mean 'cospgd'"),
        ({"attack_loss": ("angular",)}, "angular.*fits none"),
        ({"balance": ("wdg",)}, "Did you mean 'wgd'"),
        (
            {
                "balance": ("dgba",),
                "attack_weights": ("seg:2",),
                "attack_tasks": ("all",),
            },
            "Weights.*'dgba'",
        ),
        ({"attack_block": "8x8+12+0"}, "16"),
        ({"attack_classes": ("door",)}, "'door'.*wall, ball"),
        ({"attack": ("sea",), "attack_tasks": ("depth",)}, "sea needs a task with"),
        ({"source_ckpt": "/nowhere/at/all"}, "does not exist"),
        ({"ckpt": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_wrong_requests_leave_nothing_behind(run_directory, changes, message):
    settings = {"ckpt": str(run_directory), **SETTINGS, **changes}
    with pytest.raises(InputError, match=message):
        attack_job.attack(AttackConfig(**settings))
    assert not (run_directory / "attacks").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ckpt": ""}, "--ckpt"),
        ({"eps": (-1.0,)}, "--eps.*-1"),
        ({"eps": (256.0,)}, "--eps.*255.*256"),
        ({"eps": ()}, "--eps"),
        ({"steps": 0}, "--steps.*0"),
        ({"attack": ("pgdd",)}, "Did you mean 'pgd'"),
        ({"attack": ()}, "--attack"),
        ({"attack_tasks": ()}, "--attack_tasks"),
        ({"norm": "l1"}, "--norm.*l1"),
        ({"name": "../up"}, "--name"),
        ({"ensemble": ("pgd", "sea")}, "'sea'"),
        ({"attack": ("worst",), "ensemble": ()}, "--ensemble"),
        ({"attack_block": "8"}, "--attack_block.*'8'"),
        ({"attack_block": "8x8", "attack_pixels": 3}, "--attack_pixels"),
        ({"attack_weights": ("seg",)}, "--attack_weights.*'seg'"),
        ({"attack_weights": ("seg:-1e9",)}, "--attack_weights.*'seg:-1e9'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        AttackConfig(**{"ckpt": "x", **changes})


def test_radii_of_l2_are_no_levels():
    assert AttackConfig(ckpt="x", norm="l2", eps=(300.0,)).eps == (300.0,)


def test_a_targeted_attack_needs_other_images(run_directory, monkeypatch):
    def load(split):
        columns = blobs(split)
        targets = {task: target[:1] for task, target in columns.targets.items()}
        return Columns(columns.images[:1], targets, {})

    info = dataclasses.replace(INFO, splits={"train": 1, "validation": 1})
    monkeypatch.setitem(data.DATASETS, "blobs", lambda **options: Source(info, load))
    settings = SETTINGS | {"targeted": True}
    with pytest.raises(InputError, match="to the targets of other images, but .* one"):
        attack_job.resolve(AttackConfig(ckpt=str(run_directory), **settings))


def test_the_attacks_of_the_flag_are_those_of_the_table():
    for name, kind in KINDS.items():
        assert AttackConfig(ckpt="x", attack=(name,)).attack == (name,)
        assert (name in kinds.member_names()) != (
            kind.is_ensemble or kind.for_comparison
        )


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [
            str(pathlib.Path(data.__file__).parents[2]),
            str(pathlib.Path(__file__).parents[1]),  # Where fixtures are.
        ]
    ),
}


def start(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mtr_tf.attack", *flags],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_quick_and_shows_every_flag():
    import resource

    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start("--help")
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
    assert process.returncode == 0
    assert seconds < 0.5
    for name, default in AttackConfig(ckpt="x").to_dict().items():
        assert f"  --{name}=" in process.stdout
        if name not in ("ckpt",) and not isinstance(default, list):
            default = str(default).lower() if isinstance(default, bool) else default
            default = "not given" if default is None else default
            assert f"  --{name}={default}\n" in process.stdout


def test_the_binary_answers_a_mistake_in_one_line():
    process = start("--ckpt=runs/none", "--eps=-3")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: --eps")
    assert process.stderr.count("\n") == 1


INTERRUPTED = """
import importlib.util
spec = importlib.util.spec_from_file_location("helper", {path!r})
helper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helper)
helper.data.DATASETS["blobs"] = helper.open_blobs
from mtr_tf import attack
attack.run()
"""


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(run_directory, tmp_path):
    script = tmp_path / "attack.py"
    script.write_text(INTERRUPTED.format(path=__file__))
    flags = [f"--ckpt={run_directory}", "--name=cut", "--steps=300", "--eps=1,2,3"]
    with process_fixture.start(
        [sys.executable, str(script), *flags],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    ) as process:
        cells_folder = run_directory / "attacks" / "cut" / "cells"
        deadline = time.monotonic() + 60
        while not list(cells_folder.glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, line = errors.decode().strip().splitlines()
    assert re.match(r"stopped by Ctrl-C\. [1-9] of 10 evaluations are finished", line)
    assert "Traceback" not in errors.decode()
    assert not (run_directory / "attacks" / "cut" / "results.json").exists()


# Spread over processes.


SMALL = {"attack": ("fgsm",), "attack_tasks": ("all",), "eps": (1.0, 8.0)}


def rows_of(records):
    """The records without the paths of their rows and their times."""
    return [{k: v for k, v in r.items() if k not in ("rows", "time")} for r in records]


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The records of a run that is not spread."""
    folder = write_run(trained, tmp_path_factory.mktemp("whole"))
    return rows_of(run_attack(folder, **SMALL))


@pytest.mark.slow
def test_parts_finish_what_the_whole_then_finds(
    run_directory, whole, monkeypatch, unplotted
):
    cells = []
    make_evaluator = sweep.make_evaluator

    def count_cell(subject, cell, *arguments, **options):
        cells.append(cell)
        return make_evaluator(subject, cell, *arguments, **options)

    monkeypatch.setattr(sweep, "make_evaluator", count_cell)
    folder = run_directory / "attacks" / "parted"
    fields = SETTINGS | SMALL | {"name": "parted"}
    config = AttackConfig(ckpt=str(run_directory), **fields)
    for part in ("2/2", "1/2", "2/2"):
        sentence = attack_job.attack(dataclasses.replace(config, part=part))
        assert sentence == f"part {part} is finished; its results are in {folder}"
    assert not (folder / "results.json").exists()
    count = len(cells)
    records = run_attack(run_directory, name="parted", **SMALL)
    assert len(cells) == count
    assert rows_of(records) == whole


def test_parts_are_a_partition_and_none_is_much_longer(run_directory):
    job = attack_job.resolve(
        AttackConfig(ckpt=str(run_directory), **SETTINGS | {"attack": ("pgd", "fgsm")})
    )
    evaluations = sweep.evaluations(job.cells)
    assert len(evaluations) == 1 + len(job.cells)
    for count in (1, 2, 5, len(evaluations), len(evaluations) + 2):
        parts = sweep.parts(evaluations, count)
        assert len(parts) == count
        assert sorted(map(str, evaluations)) == sorted(str(c) for p in parts for c in p)
        sums = [sum(c.passes if c else 1 for c in part) for part in parts]
        most_passes = max(cell.passes for cell in job.cells)
        assert max(sums) <= sum(sums) / count + most_passes


class AtOnce(futures.Executor):
    """Runs each function before `submit` returns."""

    def submit(self, fn, /, *args):
        future = futures.Future()
        future.set_result(fn(*args))
        return future


@pytest.fixture
def here(monkeypatch):
    """Runs commands of executors in this process; lists the arguments of each."""
    argument_lists = []

    def run(part_command):
        argument_lists.append(part_command.arguments)
        values = absl_flags.FlagValues()
        cli_flags.define(AttackConfig, values)
        values(list(part_command.arguments))
        config = cli_flags.read(AttackConfig, values)
        if config.part.startswith("2/") and len(argument_lists) < 3:
            return command.Ended(1, 1.0, "no memory", {}, "here")
        assert config.strategy == "one_device"
        # A second strategy in one process can stop TensorFlow's input for good.
        attack_job.attack(dataclasses.replace(config, strategy="auto"))
        return command.Ended(0, 1.0, "", {}, "here")

    engine = executors.Engine(AtOnce(), 2, 2)
    monkeypatch.setattr(executors, "create", lambda *arguments: engine)
    monkeypatch.setattr(command, "run", run)
    return argument_lists


@pytest.mark.slow
def test_an_executor_runs_parts_and_says_which_failed(
    run_directory, whole, here, unplotted
):
    fields = SMALL | {"name": "spread", "executor": "local", "workers": 2}
    with pytest.raises(InputError, match="1 of 2 parts .* no memory .*2-of-2.log"):
        run_attack(run_directory, **fields)
    assert not (run_directory / "attacks" / "spread" / "results.json").exists()
    assert rows_of(run_attack(run_directory, **fields)) == whole
    count = len(here)
    assert count == 3  # The part that had failed was repeated alone.
    assert "--name=spread" in here[-1]
    assert "--part=2/2" in here[-1]
    run_attack(run_directory, **fields)
    assert len(here) == count


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"part": "3/2"}, "--part must be I/N"),
        ({"part": "0/2"}, "--part must be I/N"),
        ({"part": "x"}, "--part must be I/N"),
        ({"part": "1/2", "executor": "local"}, "leave out one of the two"),
        ({"part": "1/2", "ckpt": "gs://b/run"}, "--part needs --ckpt in a folder"),
        ({"executor": "ray", "ckpt": "gs://b/run"}, "--executor needs --ckpt in a"),
        ({"part": "1/2", "out": "gs://b/mine"}, "--part needs --out in a folder"),
        ({"name": "one", "out": "mine"}, "--name and --out both say where"),
    ],
)
def test_what_cannot_be_spread_is_said(fields, said):
    with pytest.raises(InputError, match=said):
        AttackConfig(**{"ckpt": "run"} | fields)


@pytest.mark.slow
def test_a_part_waits_for_no_other_part_but_for_the_whole(run_directory):
    folder = run_directory / "attacks" / "test"
    config = AttackConfig(ckpt=str(run_directory), **SETTINGS | SMALL, part="4/4")
    with files.locked(folder, shared=True):
        attack_job.attack(config)
        with pytest.raises(files.InUse):
            run_attack(run_directory)
    with files.locked(folder), pytest.raises(files.InUse):
        attack_job.attack(config)
