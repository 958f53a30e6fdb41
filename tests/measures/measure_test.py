# SPDX-License-Identifier: Apache-2.0
"""Measures over a data set: files, resumption, records and passes by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf import attack_job
from mtr_tf import attacks
from mtr_tf import data
from mtr_tf import models
from mtr_tf.config import attack as attack_config
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.measures import measure as measure_lib
from mtr_tf.measures import passes
from mtr_tf.measures import records as measure_records
from mtr_tf.measures import steps
from mtr_tf.runs import directory
from mtr_tf.runs.workers import Workers
from mtr_tf.show import theory
from mtr_tf.tasks import TASKS as KNOWN
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import metrics

SIDE, COUNT = 8, 5
TASKS = ("seg", "depth")
INFO = DatasetInfo(
    name="specks",
    image_shape=(SIDE, SIDE, 3),
    classes=("dark", "bright"),
    colors=((0, 0, 0), (255, 255, 255)),
    tasks=TASKS,
    splits={"validation": COUNT},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={"depth": (0.0, 1.0)},
)


def specks(split: str) -> Columns:
    """Noise; the class is whether a pixel is bright; one picture has no depth."""
    random = np.random.default_rng(0)
    images = random.integers(60, 196, (COUNT, SIDE, SIDE, 3), np.uint8)
    light = images.mean(axis=-1)
    valid = random.integers(0, 4, (COUNT, SIDE, SIDE)) > 0
    valid[1] = False
    return Columns(
        images=images,
        targets={
            "seg": (light > 128).astype(np.uint8),
            "depth": (light[..., np.newaxis] / 255).astype(np.float32),
        },
        masks={"depth": valid},
    )


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return models.build("tiny", TASKS, INFO.image_shape, 2)


def subject_of(model, strategy=None, batch_size=2) -> sweep.Subject:
    return sweep.Subject(
        model=model,
        tasks=TASKS,
        info=INFO,
        columns=specks("validation"),
        num_examples=COUNT,
        workers=Workers(strategy or tf.distribute.get_strategy()),
        batch_size=batch_size,
        seed=0,
    )


@pytest.fixture
def run_directory(model, tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setitem(data.DATASETS, "specks", lambda **options: Source(INFO, specks))
    folder = tmp_path / "run"
    directory.write_config(
        folder, TrainConfig(tasks=TASKS, dataset="specks", model="tiny")
    )
    model.save(folder / "model.keras")
    return folder


def config_of(folder, **changes) -> AttackConfig:
    settings = {
        "attack": ("none",),
        "measure": attack_config.MEASURES,
        "measure_draws": 2,
        "eps": (2.0,),
        "attack_tasks": ("seg",),
        "steps": 2,
        "batch_size": 4,
        "name": "test",
    }
    return AttackConfig(ckpt=str(folder), **{**settings, **changes})


def chosen(records, quantity, **fields):
    return [
        r
        for r in records
        if r["quantity"] == quantity and all(r.get(k) == v for k, v in fields.items())
    ]


@pytest.mark.slow
def test_command_files_and_resumption(run_directory, monkeypatch):
    text = attack_job.attack(config_of(run_directory))
    folder = run_directory / "attacks" / "test"
    records = json.loads((folder / "measures.json").read_text())
    assert "mean of 3" not in text
    assert "attacked  eps=0.125  eps=0.5  eps=2" in text
    assert "metrics on corrupted images, the mean over 5 severities:" in text
    assert f"logdir={folder}" in text
    assert not (folder / "results.json").exists()

    for record in records:
        assert record["n"] == COUNT
        assert (record["dataset"], record["split"]) == ("specks", "validation")
        assert record["seed"] == 0
        assert len(record["model_fingerprint"]) > 8
    with open(folder / "measures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    assert float(rows[0]["value"]) == records[0]["value"]
    check_records(records)
    check_tensorboard(folder / "measures", records)

    # The same command computes nothing; a lost or damaged part is made again.
    content = (folder / "measures.json").read_text()
    parts = sorted((folder / "measures").glob("*.npz"))
    calls = []
    original = passes.Pass.__call__

    def counting_call(self, *arguments):
        calls.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(passes.Pass, "__call__", counting_call)
    monkeypatch.setattr(theory, "save_run", lambda *_: [])  # Takes seconds.
    attack_job.attack(config_of(run_directory, batch_size=3))
    assert not calls
    assert (folder / "measures.json").read_text() == content
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    attack_job.attack(config_of(run_directory))
    assert calls
    assert (folder / "measures.json").read_text() == content
    assert sorted((folder / "measures").glob("*.npz")) == parts


def check_records(records):
    sizes = chosen(records, "norm_by_size", norm="l2", normalisation="unit")
    assert [r["count"] for r in sizes] == [1, 2]
    assert sizes[0]["value"] == pytest.approx(1)
    assert sizes[1]["value"] <= sizes[1]["root_mean_square"]
    (cosine,) = chosen(records, "cosine", tasks=["seg", "depth"])
    (magnitude,) = chosen(records, "abs_cosine", tasks=["seg", "depth"])
    assert abs(cosine["value"]) <= magnitude["value"] <= 1
    assert cosine["interval"][0] <= cosine["value"] <= cosine["interval"][1]
    (pair,) = chosen(
        records,
        "norm_of_mean",
        norm="l2",
        normalisation="raw",
        count=2,
    )
    assert pair["tasks"] == ["seg", "depth"]
    assert pair["value"] <= pair["predicted"] * (1 + 1e-6)  # Jensen.
    assert pair["norm_of_sum"] == pytest.approx(2 * pair["value"])
    for measure in ("pixels", "blocks"):
        matches = chosen(
            records, "gradient_norm", measure=measure, norm="l2", tasks=["seg"]
        )
        assert [r["count"] for r in matches] == [1, 4, 16, 64]
        assert matches[0]["relative"] == 1
        pixel_attacks = chosen(
            records, "attacked_pixels", measure=measure, tasks=["seg"]
        )
        for record in pixel_attacks:
            if record["metric"] == "pixel_accuracy":
                assert record["value"] <= record["clean"]
            else:
                assert record["value"] >= record["clean"]
    rises = chosen(records, "rise", tasks=["seg"])
    assert [r["eps"] for r in rises] == [0.125, 0.5, 2]
    assert rises[0]["ratio"] == pytest.approx(1, abs=0.05)

    matches = chosen(records, "corrupted", tasks=["seg"], metric="miou")
    assert len(matches) == 40
    assert {r["clean"] for r in matches} == {matches[0]["clean"]}
    (mean,) = chosen(records, "mean_corrupted", tasks=["seg"], metric="miou")
    assert mean["value"] == pytest.approx(np.mean([r["value"] for r in matches]))


def check_tensorboard(folder, records):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    values = {
        event.step: float(tf.make_ndarray(event.tensor_proto))
        for event in events.Tensors("measure_pixels/seg_gradient_l2")
    }
    norms = chosen(records, "gradient_norm", measure="pixels", norm="l2", tasks=["seg"])
    assert values == pytest.approx({r["count"]: r["value"] for r in norms})


def test_passes_depend_on_neither_batch_size_nor_replicas(model, mirrored, monkeypatch):
    # Between GPUs, `gather` takes no booleans, which "valid" is.
    monkeypatch.delattr(tf.distribute.Strategy, "gather")

    def arrays(subject, model):
        step = steps.gradients(model, TASKS)
        counts = []
        result = passes.Pass(subject, step)(counts.append)
        assert sum(counts) == COUNT
        return result

    expected = arrays(subject_of(model), model)
    odd_batches = arrays(subject_of(model, batch_size=3), model)
    with mirrored.scope():
        copy = models.build("tiny", TASKS, INFO.image_shape, 2)
    copy.set_weights(model.get_weights())
    replicated = arrays(subject_of(copy, mirrored, 4), copy)
    for name, array in expected.items():
        assert len(array) == COUNT
        np.testing.assert_allclose(odd_batches[name], array, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(replicated[name], array, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(expected["valid"][:, 1], np.arange(COUNT) != 1)


def test_a_killed_measure_goes_on(tmp_path):
    names = []

    def part(name, fails=False):
        def make(advance):
            if fails:
                raise KeyboardInterrupt
            names.append(name)
            return {"value": np.full(COUNT, ord(name))}

        return passes.Part({"part": name}, 1, make)

    worker = Workers(tf.distribute.get_strategy())
    parts = passes.Parts(tmp_path, {"model": "m"}, worker)
    with pytest.raises(KeyboardInterrupt):
        parts.finish([part("a"), part("b", fails=True)], COUNT)
    results = parts.finish([part("a"), part("b")], COUNT)
    assert names == ["a", "b"]
    assert [int(arrays["value"][0]) for arrays in results] == [97, 98]
    other_parts = passes.Parts(tmp_path, {"model": "another"}, worker)
    other_parts.finish([part("a")], COUNT)
    assert names == ["a", "b", "a"]


def test_sets_of_pixels():
    for make in (measure_lib.random_sets, measure_lib.block_sets):
        sets = make(8, 12, draws=3, seed=0)
        repeat = make(8, 12, draws=3, seed=0)
        other_seed = make(8, 12, draws=3, seed=1)
        assert list(sets)[-1] == 96
        for count, masks in sets.items():
            assert len(masks) == (3 if count < 96 else 1)
            for mask in masks:
                assert mask.shape == (8, 12)
                assert set(np.unique(mask)) <= {0, 1}
                assert mask.sum() == count
            np.testing.assert_array_equal(masks, repeat[count])
        assert not np.array_equal(sets[4], other_seed[4])
    assert list(measure_lib.random_sets(8, 12, 1, 0)) == [1, 4, 16, 64, 96]
    assert list(measure_lib.block_sets(8, 12, 1, 0)) == [1, 4, 16, 96]
    rows, columns = np.nonzero(measure_lib.block_sets(8, 12, 1, 0)[16][0])
    assert (np.ptp(rows), np.ptp(columns)) == (3, 3)
    tiny_sets = measure_lib.random_sets(1, 1, 2, 0)
    assert {count: len(masks) for count, masks in tiny_sets.items()} == {1: 1}


def test_attacks_on_pixels_are_judged_on_these_pixels(model):
    # Against a direct call of the attack, and NumPy.
    subject = subject_of(model, batch_size=COUNT)
    pgd = attacks.PGD(8 / 255, 2 / 255, 5, random_start=False)
    mask = attacks.random_pixels(SIDE, SIDE, 7, 3)
    step = steps.pixel_attack(subject, "seg", pgd)
    arrays = passes.Pass(subject, step)(lambda n: None, tf.constant(mask))
    images = (subject.columns.images / np.float32(255)).astype("f")
    labels = subject.columns.targets["seg"].astype(np.int32)
    masks = {"seg": np.broadcast_to(mask, labels.shape)}
    goal = attacks.objective(model, {"seg": labels}, masks, ("seg",))
    for kind, image in (("clean", images), ("attacked", pgd(goal, images))):
        logits = model(image, training=False)["seg"].numpy()
        hits = ((logits.argmax(-1) == labels) * mask).sum((1, 2))
        rows = arrays[f"{kind}/pixel_accuracy"]
        np.testing.assert_array_equal(rows, np.stack([hits, [7] * COUNT], 1))
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        cross_entropy = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        losses = (cross_entropy * mask).sum((1, 2)) / 7
        np.testing.assert_allclose(arrays[f"{kind}/loss"][:, 0], losses, rtol=1e-3)


def test_a_task_with_mean_iou_alone_is_judged_by_its_loss_once():
    miou_task = Task("seg", classes=("a", "b"), metrics=[metrics.miou()])
    for task, names in (
        (miou_task, ["loss"]),
        (KNOWN["seg"], ["pixel_accuracy", "loss"]),
    ):
        assert [m.name for m in measure_records.shown_metrics(task)] == names


@pytest.mark.parametrize("name", ["tasks", "pixels", "blocks", "first_order"])
def test_gradients_of_numbers_need_targets_of_their_own(name):
    tasks = TaskSet([Task("seg", kind="classes"), Task("age", places=0)])
    settings = measure_lib.MeasureSettings((name,), (("seg", "age"),))
    if name in ("pixels", "blocks"):  # These are about maps only.
        measure_lib.check_own_targets(settings, tasks)
        tasks = TaskSet([tasks["seg"], tasks["age"].bound(places=2)])
    with pytest.raises(InputError, match=f"--measure={name} .*--targets=own .* of age"):
        measure_lib.check_own_targets(settings, tasks)
    class_settings = dataclasses.replace(settings, groups=(("seg",),))
    measure_lib.check_own_targets(class_settings, TaskSet([tasks["seg"]]))
    corruption_settings = dataclasses.replace(settings, measures=("corruptions",))
    measure_lib.check_own_targets(corruption_settings, tasks)


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        (("all",), (("seg", "normal"),)),
        (("each",), (("seg",), ("normal",))),
        (("seg+normal",), (("seg", "normal"),)),
    ],
)
def test_groups_are_those_of_the_attack_without_the_spared_tasks(asked, groups):
    config = AttackConfig(
        ckpt="x", measure=("first_order",), attack_tasks=asked, spare=("depth",)
    )
    tasks = ("seg", "depth", "normal")
    assert measure_lib.settings_of(config, tasks).groups == groups
    assert {cell.tasks for cell in make_cells(config, tasks)} == {*groups}


def test_sets_of_too_many_tasks_are_refused():
    config = AttackConfig(ckpt="x", measure=("tasks",))
    names = [f"t{number}" for number in range(gradients_lib.MOST_TASKS + 1)]
    measure_lib.settings_of(config, names[:-1])
    pixel_config = dataclasses.replace(config, measure=("pixels",))
    measure_lib.settings_of(pixel_config, names)
    for make in (
        lambda: measure_lib.settings_of(config, names),
        lambda: gradients_lib.members(len(names)),
        lambda: gradients_lib.l1_of_sums(tf.zeros((1, len(names), 2))),
    ):
        with pytest.raises(InputError, match=r"at most 14 tasks, but 15 .* --tasks"):
            make()


def test_records_of_tasks_by_hand():
    # Two images, two tasks with gradients (3, 4), (4, -3) and (6, 8), (3, 4).
    gradients = np.array([[[3.0, 4], [4, -3]], [[6, 8], [3, 4]]])
    arrays = {
        "gram": gradients @ gradients.transpose(0, 2, 1),
        "l1": np.abs(gradients).sum(axis=2),
        "valid": np.ones((2, 2), bool),
    }
    members = gradients_lib.members(2)
    l1 = {
        name: np.abs(members @ (gradients * _scale_column(arrays, name))).sum(axis=2)
        for name in gradients_lib.NORMALISATIONS
    }
    records = measure_records.of_tasks(arrays, l1, TASKS, seed=0)
    raw = {"norm": "l2", "normalisation": "raw"}
    values = [r["value"] for r in chosen(records, "norm_of_mean", **raw)]
    pair_value = (np.sqrt(50) / 2 + 15 / 2) / 2
    np.testing.assert_allclose(values, [7.5, 5, pair_value])
    (prediction,) = (
        r["predicted"] for r in chosen(records, "norm_of_mean", **raw, count=2)
    )
    assert prediction == pytest.approx(np.sqrt((50 / 4 + 225 / 4) / 2))
    (size,) = chosen(records, "norm_by_size", **raw, count=1)
    assert size["value"] == pytest.approx(6.25)
    (size,) = chosen(records, "norm_by_size", **raw, count=2)
    rho = 25 / ((62.5 + 25) / 2)
    assert size["factor"] == pytest.approx(np.sqrt((1 + rho) / 2))
    assert size["predicted"] == pytest.approx(prediction)
    first, second = (
        r["root_mean_square"] for r in chosen(records, "norm_by_size", **raw)
    )
    assert second == pytest.approx(first * size["factor"])
    (slope,) = chosen(records, "slope", **raw)
    assert slope["value"] == pytest.approx(np.log2(pair_value / 6.25))
    unit = chosen(records, "norm_by_size", norm="l1", normalisation="unit")
    # (3, 4) / 7 + (4, -3) / 7 has l1 norm 8 / 7; the second image's add up to 2.
    np.testing.assert_allclose([r["value"] for r in unit], [1, (4 / 7 + 1) / 2])
    (cosine,) = chosen(records, "cosine", tasks=list(TASKS))
    (covariance,) = chosen(records, "covariance", tasks=list(TASKS))
    (correlation,) = chosen(records, "correlation", tasks=list(TASKS))
    assert cosine["value"] == pytest.approx(0.5)
    assert covariance["value"] == pytest.approx(25)
    assert correlation["value"] == pytest.approx(25 / np.sqrt(62.5 * 25))
    (mean,) = chosen(records, "mean_cosine")
    assert mean["value"] == pytest.approx(0.5)


def test_intervals_of_means_are_those_of_metrics():
    values = np.random.default_rng(0).normal(size=(30, 2, 2))
    values[3, 1, 0] = np.nan
    draws = intervals.resampled_means(values, resamples=200, seed=5)
    ends = intervals.of_draws(draws, np.nanmean(values, axis=0), 30)
    mean = dataclasses.replace(metrics.mae(), bounds=(-np.inf, np.inf))
    for i, j in np.ndindex(2, 2):
        column = values[:, i, j]
        rows = np.stack([np.nan_to_num(column), ~np.isnan(column)], axis=1)
        expected = intervals.of_metric(mean, rows, resamples=200, seed=5)
        rtol = 1e-2 if (i, j) == (1, 0) else 1e-7  # Of 29 images there.
        np.testing.assert_allclose(ends[:, i, j], expected, rtol=rtol)
    nan_draws = intervals.resampled_means(np.full((3, 1), np.nan), seed=0)
    assert np.isnan(intervals.percentiles(nan_draws)).all()


def _scale_column(arrays, name):
    return gradients_lib.scales(arrays["l1"], name)[..., np.newaxis]


def test_one_task_and_no_pixels_give_numbers_that_json_takes():
    arrays = {"gram": np.zeros((2, 1, 1)), "l1": np.zeros((2, 1))}
    arrays["valid"] = np.array([[True], [False]])
    l1 = {name: np.zeros((2, 1)) for name in gradients_lib.NORMALISATIONS}
    records = measure_records.of_tasks(arrays, l1, TASKS[:1], seed=0)
    nan_norms = np.full((2, 3, 1), np.nan)
    norms = {
        1: {"l2": nan_norms, "l1": nan_norms},
        4: {"l2": nan_norms, "l1": nan_norms},
    }
    records += measure_records.of_pixel_gradients("pixels", norms, TASKS[:1], 0)
    json.dumps(records, allow_nan=False)
    figure = theory.sizes_of_run(records)
    assert len(figure.axes) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measure": ("task",)}, "'tasks'"),
        ({"measure": ()}, "--measure"),
        ({"eps": (0.0,)}, "above 0"),
        ({"attack": ("none", "pgd")}, "none"),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(InputError, match=words):
        config_of("anything", **changes)


def test_the_page_names_every_measure():
    page = pathlib.Path(__file__).parents[2] / "docs" / "measures.md"
    for name in attack_config.MEASURES:
        assert f"`{name}`" in page.read_text()
