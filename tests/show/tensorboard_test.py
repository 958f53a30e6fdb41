# SPDX-License-Identifier: Apache-2.0
"""Summaries: tags and pictures by hand, and read back from event files."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import resource
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from cells_fixture import a_cell
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.runs.workers import Workers
from mtr_tf.show import tensorboard
from mtr_tf.tasks import Task
from mtr_tf.tasks import more_metrics
from mtr_tf.tasks import names as names_lib
from mtr_tf.tasks import task_set
from mtr_tf.training import losses as training_losses
from mtr_tf.training import monitor
from mtr_tf.training import schedules
from mtr_tf.training.losses import Weighting
from mtr_tf.training.step import Learner

INFO = types.SimpleNamespace(
    colors=((10, 20, 30), (200, 100, 50)), ranges={"depth": (0.0, 1.0)}
)
GAP, HEADING = 2, 48
KINDS_SHOWN = ("training", "clean", "attacked")


def make_examples(attacked: bool = True) -> Examples:
    image = np.full((2, 4, 5, 3), 0.5, np.float32)
    logits = np.zeros((2, 4, 5, 2), np.float32)
    logits[..., 1] = 1
    return Examples(
        image=image,
        targets={"seg": np.zeros((2, 4, 5), np.int32)},
        masks={"seg": np.ones((2, 4, 5), np.float32)},
        clean={"seg": -logits},
        adversarial=image + np.float32(0.1) if attacked else None,
        attacked={"seg": logits} if attacked else {},
    )


def read(folder: pathlib.Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"tensors": 0}).Reload()


def numbers(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar."""
    return [
        (event.step, float(tf.make_ndarray(event.tensor_proto)))
        for event in events.Tensors(tag)
    ]


def picture(events: EventAccumulator, tag: str) -> np.ndarray:
    _, _, png = tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
    return tf.io.decode_png(png).numpy()


def description(events: EventAccumulator, tag: str) -> str:
    return events.SummaryMetadata(tag).summary_description


def hparams(events: EventAccumulator) -> dict:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in info.hparams.items()
    }


def test_no_task_may_be_called_as_what_is_no_task_here():
    """Its numbers would have the tags of the sum, or of the optimizer."""
    tags = {*tensorboard.loss_scalars({}), *tensorboard._OPTIMIZER}
    assert {tag.partition("/")[0] for tag in tags} == {"total", "optimizer"}
    for word in ("total", "optimizer"):
        assert word in names_lib.RESERVED


def test_tags_and_totals():
    assert tensorboard.loss_scalars(
        {"seg": 2.0, "depth": 0.5}, {"seg": 1, "depth": 2}
    ) == {
        "seg/loss": 2.0,
        "depth/loss": 0.5,
        "total/loss": 3.0,
    }
    values = {"seg": {"miou": 0.5, "loss": 2.0}, "depth": {"loss": math.nan}}
    scalars = tensorboard.evaluation_scalars(values)
    assert scalars["seg/miou"] == 0.5
    assert scalars["total/loss"] == 2.0  # Without the unknown loss.
    assert math.isnan(scalars["depth/loss"])


def test_every_number_says_its_unit_and_which_way_is_better():
    for name, task in tasks_lib.TASKS.items():
        for metric in task.metrics:
            text = tensorboard.describe(f"{name}/{metric.name}")
            assert f"{metric.better} is better" in text
            assert f", in {metric.unit}" in text or not metric.unit
    assert ", in pixels;" in tensorboard.describe("depth/mae", {"depth": "pixels"})
    assert "lower is better" in tensorboard.describe("total/loss")
    assert "higher is better" in tensorboard.describe("optimizer/examples_per_second")


def test_metrics_of_ones_own_have_any_names(tmp_path):
    """Even names like those of a learned weight, or of a number with its kind."""

    def make_metric(name):
        def error(target, output, mask):
            return mask

        error.__name__, error.better = name, "lower"
        return error

    names = ("weight_error", "error, all")
    pose = Task("pose", places=0, metrics=[make_metric(name) for name in names])
    with tensorboard.Board(tmp_path, tasks=task_set([pose])) as board:
        board.scalars({f"pose/{name}": 0.5 for name in names}, 1, "clean")
    events = read(tmp_path)
    assert set(events.Tags()["tensors"]) == {f"pose/{name}, clean" for name in names}
    for name in names:
        about = description(events, f"pose/{name}, clean")
        assert about == f"{name} of pose; lower is better."


@pytest.mark.slow
def test_training_says_which_losses_it_lowers_and_on_which_images(tmp_path):
    attack = {"adversarial_tasks": "seg", "adversarial_eps": 2, "adversarial_steps": 3}
    watch(tmp_path / "run", task_losses=("depth:l2",), adversarial_share=0.25, **attack)
    events = read(tmp_path / "run" / "train")
    about = {kind: description(events, f"depth/loss, {kind}") for kind in KINDS_SHOWN}
    assert about["training"] == (
        "loss (l2) of depth; lower is better. Mean over the training images since the "
        "last point: 0.75 of it as they are, 0.25 attacked by PGD (linf, eps 2 levels "
        "of 0-255, 3 steps) on seg."
    )
    assert about["clean"].startswith("loss (l1) of depth;")
    assert "depth/mae is the same number" in about["clean"]
    watch(tmp_path / "all", loss_norm="all", **attack)
    events = read(tmp_path / "all" / "train")
    about = description(events, "seg/loss, training")
    assert about.startswith("loss (cross entropy over all pixels) of seg;")
    assert "since the last point, attacked by PGD (linf, eps 2 " in about


def test_the_learning_rate_is_that_of_the_last_step_that_was_not_skipped(tmp_path):
    config = TrainConfig(tasks=("seg",), epochs=20, batch_size=2)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    optimizer.build([keras.Variable(0.0)])
    optimizer.iterations.assign(7)
    watch(tmp_path / "run", optimizer, step=9, evaluates=False)
    events = read(tmp_path / "run" / "train")
    rate = float(schedules.learning_rate(config, 3)(6))
    assert numbers(events, "optimizer/learning_rate") == [(9, pytest.approx(rate))]
    assert numbers(events, "optimizer/skipped_steps") == [(9, 2)]


@pytest.mark.parametrize(
    ("tag", "same"),
    [
        ("depth/loss", "depth/mae"),
        ("depth/mae", "depth/loss"),
        ("autoencoder/loss", "autoencoder/mse"),
        ("depth/rmse", None),
        ("autoencoder/mae", None),
        ("seg/loss", None),
    ],
)
def test_numbers_that_coincide_say_so(tag, same):
    text = tensorboard.describe(tag)
    assert ("is the same number" in text) == bool(same)
    assert not same or same in text


def test_the_columns_of_a_picture():
    (columns,) = tensorboard.pictures(make_examples(), ("seg",), INFO, 0.1).values()
    image, target, clean, attacked, change = columns.values()
    assert [*columns] == [
        "image",
        "target",
        "clean output",
        "attacked output",
        "perturbation x5",
    ]
    assert all(tiles.shape == (2, 4, 5, 3) for tiles in columns.values())
    assert (image == 128).all()
    assert (target == (10, 20, 30)).all()
    assert (clean == (10, 20, 30)).all()
    assert (attacked == (200, 100, 50)).all()
    assert (change == 255).all()  # +eps is white.


def test_a_picture_without_an_attack_has_three_columns():
    pictures = tensorboard.pictures(make_examples(attacked=False), ("seg",), INFO)
    assert [*pictures] == ["seg/pictures"]
    assert [*pictures["seg/pictures"]] == ["image", "target", "clean output"]


@pytest.mark.parametrize(("size", "factor"), [((4, 5), 32), ((128, 200), 1)])
def test_a_sheet_has_large_tiles_under_headings(size, factor):
    tiles = np.random.default_rng(0).integers(0, 255, (2, *size, 3), np.uint8)
    sheet = tensorboard.sheet({"one": tiles, "another": 255 - tiles})
    height, width = (side * factor for side in size)
    assert sheet.shape == (HEADING + 2 * height + GAP, 2 * width + GAP, 3)
    body = sheet[HEADING:]
    np.testing.assert_array_equal(body[:height:factor, :width:factor], tiles[0])
    np.testing.assert_array_equal(
        body[height + GAP :, width + GAP :],
        np.kron(255 - tiles[1], np.ones((factor, factor, 1), np.uint8)),
    )
    assert (body[height : height + GAP] == 255).all()
    assert (body[:, width : width + GAP] == 255).all()
    for start in (0, width + GAP):
        heading = sheet[:HEADING, start : start + width].min(axis=-1)
        dark_pixels = np.argwhere(heading < 100)
        assert len(dark_pixels) > 20  # There is a heading,
        top, left = dark_pixels.min(axis=0)
        bottom, right = dark_pixels.max(axis=0)
        assert top >= 1  # whole, and in the middle.
        assert bottom <= HEADING - 2
        assert (left + right) / 2 == pytest.approx(width / 2, abs=2)


def test_the_longest_heading_is_no_wider_than_the_smallest_tile():
    heading = "perturbation x128"
    tiles = np.full((1, 128, 128, 3), 255, np.uint8)
    sheet = tensorboard.sheet({"a": tiles, heading: tiles, "b": tiles})
    gap = sheet[:HEADING, 128 : 128 + GAP], sheet[:HEADING, 258 : 258 + GAP]
    assert (np.array(gap) == 255).all()


def test_settings_as_text():
    table = tensorboard.settings_table(
        {"tasks": ["seg", "a|b"], "a|b": "c|d", "crop": "", "main": (), "n": 0}
    )
    assert table.splitlines()[2:] == [
        "| tasks | `seg,a\\|b` |",
        "| a|b | `c\\|d` |",
        "| crop |  |",
        "| main |  |",
        "| n | `0` |",
    ]
    assert tensorboard.hparam_values({"a": (1, 2), "b": 0.5, "c": None, "d": True}) == {
        "a": "1,2",
        "b": 0.5,
        "c": "None",
        "d": True,
    }


def test_a_full_disk_is_one_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    board = tensorboard.Board(tmp_path / "train")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # Bytes of a file.
    text = f"no space is left on the disk to write {re.escape(str(tmp_path))}/train; "
    try:
        with pytest.raises(InputError, match=text):
            board.number("seg/loss", 0.5, 1)
        with pytest.raises(InputError, match=text):
            board.picture("seg", np.zeros((8, 8, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_written_can_be_read_back(tmp_path):
    tiles = np.full((1, 200, 150, 3), 9, np.uint8)
    with tensorboard.Board(tmp_path) as board:
        board.scalars(
            {"seg/loss": 0.25, "depth/loss": math.nan}, 7, about="On 3 images."
        )
        board.scalars({"seg/miou": 0.5}, 8)
        board.pictures({"seg/pictures": {"image": tiles}}, 7, "So.")
        board.settings({"tasks": ("seg",), "epochs": 3})
        board.hparams({"tasks": ("seg",), "epochs": 3}, "trial")
    events = read(tmp_path)
    assert set(events.Tags()["tensors"]) == {
        "seg/loss",
        "seg/miou",
        "seg/pictures",
        "settings",
        "_hparams_/session_start_info",
    }
    assert numbers(events, "seg/loss") == [(7, 0.25)]
    about = description(events, "seg/loss")
    assert about.startswith("loss (cross entropy) of seg; lower is better.")
    assert about.endswith("On 3 images.")
    assert description(events, "seg/pictures") == "Columns: image. So."
    assert (picture(events, "seg/pictures")[HEADING:] == 9).all()
    (table,) = tf.make_ndarray(events.Tensors("settings")[0].tensor_proto).ravel()[:1]
    assert b"| epochs | `3` |" in table
    assert hparams(events) == {"epochs": 3, "tasks": "seg"}


# Training.


def a_source() -> Source:
    """Noise of 16 x 16, for seg and depth."""
    rng = np.random.default_rng(0)
    columns = Columns(
        images=rng.integers(0, 256, (6, 16, 16, 3), np.uint8),
        targets={
            "seg": rng.integers(0, 2, (6, 16, 16), np.uint8),
            "depth": rng.uniform(1, 3, (6, 16, 16, 1)).astype(np.float32),
        },
        masks={},
    )
    info = DatasetInfo(
        name="noise",
        image_shape=(16, 16, 3),
        classes=("a", "b"),
        colors=INFO.colors,
        tasks=("seg", "depth"),
        splits={"train": 6, "validation": 6},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        ranges={"depth": (1.0, 3.0)},
    )
    return Source(info, lambda split: columns)


def watch(
    folder: pathlib.Path, optimizer=None, step: int = 1, evaluates=True, **settings
) -> None:
    """Writes what a run of one step on `a_source` writes."""
    config = TrainConfig(
        tasks=("depth", "seg"),
        dataset="noise",
        eval_steps=1,
        **({"batch_size": 2, "eval_examples": 5} | settings),
    )
    learner = Learner(
        models.build("tiny", config.tasks, (16, 16, 3), 2),
        optimizer or keras.optimizers.Adam(),
        training_losses.make(config, a_source().info),
        Weighting({"depth": 1.0, "seg": 2.0}),
        config.weight_decay,
        config.batch_size,
    )
    run_monitor = monitor.Monitor(
        config,
        a_source(),
        Workers(tf.distribute.get_strategy()),
        learner,
        task_set(config.tasks),
        monitor.parse_best(config, task_set(config.tasks)),
        folder,
    )
    run_monitor.trained(step, np.array([0.5, 0.25]), 3.0)
    if evaluates:
        run_monitor.evaluated(step)


def test_training_is_one_run_with_all_kinds_of_numbers(tmp_path):
    watch(tmp_path / "run", main_tasks=("seg",))
    (folder,) = (tmp_path / "run").iterdir()
    events = read(folder)
    losses = {"seg/loss", "depth/loss", "total/loss"}
    metrics = {"seg/miou", "seg/pixel_accuracy"}
    metrics |= {"depth/mae", "depth/rmse", "depth/rel"}
    assert set(events.Tags()["tensors"]) == {
        *(f"{tag}, training" for tag in losses),
        *(f"{tag}, {kind}" for tag in losses | metrics for kind in KINDS_SHOWN[1:]),
        "optimizer/learning_rate",
        "optimizer/examples_per_second",
        "seg/pictures",
        "depth/pictures",
        "settings",
        "custom_scalars__config__",
        "_hparams_/session_start_info",
    }
    assert numbers(events, "total/loss, training") == [(1, 1.0)]
    assert numbers(events, "optimizer/examples_per_second") == [(1, 6.0)]
    ((_, clean),), ((_, attacked),) = (
        numbers(events, f"seg/loss, {kind}") for kind in KINDS_SHOWN[1:]
    )
    assert attacked > clean
    about = {kind: description(events, f"depth/loss, {kind}") for kind in KINDS_SHOWN}
    assert all(text.startswith("loss (l1) of depth;") for text in about.values())
    images = [kind for kind, text in about.items() if "first 5 images" in text]
    assert images == ["clean", "attacked"]
    assert "eps 4 levels of 0-255, 1 steps) on seg." in about["attacked"]
    assert "PGD" not in about["clean"]
    sheet = picture(events, "seg/pictures")
    assert sheet.shape == (HEADING + 2 * 128 + GAP, 5 * 128 + 4 * GAP, 3)
    (content,) = tf.make_ndarray(
        events.Tensors("custom_scalars__config__")[0].tensor_proto
    ).ravel()
    layout = layout_pb2.Layout.FromString(content)
    assert layout == tensorboard.layout(task_set(("depth", "seg")), ("seg",))
    assert hparams(events) == {
        "tasks": "depth,seg",
        "main_tasks": "seg",
        "aux_weight": 1.0,
        "task_weights": "main_aux",
        "adversarial_tasks": "none",
        "dataset": "noise",
        "image_size": "16x16",
        "model": "small",
        "width": 0,
        "decoders": "separate",
        "shared_stages": -1,
        "epochs": 20,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "optimizer": "adam",
        "schedule": "cosine",
        "weight_decay": 0.0,
        "seed": 0,
        "precision": "float32",
    }


def test_a_chart_for_each_number_takes_all_its_kinds_main_tasks_first():
    tasks = more_metrics.with_more(task_set("d,s,n"), ["delta1"], None)
    layout = tensorboard.layout(tasks, ("seg",))
    assert [category.title for category in layout.category][:2] == ["seg", "depth"]
    assert layout.category[-1].title == "total"
    charts = {chart.title: chart for part in layout.category for chart in part.chart}
    assert [chart.title for chart in layout.category[0].chart] == [
        "seg/loss",
        "seg/miou",
        "seg/pixel_accuracy",
    ]
    assert "depth/delta1" in charts  # As of a callback that was asked for it.
    (pattern,) = charts["seg/loss"].multiline.tag
    loss_tags = [f"seg/loss, {kind}" for kind in KINDS_SHOWN]
    other_tags = [
        "seg/loss",
        "seg/losses, clean",
        "aseg/loss, clean",
        "total/loss, clean",
    ]
    other_tags += ["seg_by_eps/loss, pgd on seg"]
    assert [
        tag for tag in loss_tags + other_tags if re.match(pattern, tag)
    ] == loss_tags


def test_evaluations_take_no_more_images_at_once_than_there_are(
    tmp_path, monkeypatch, mirrored
):
    class Stop(Exception):
        pass

    def worthwhile(mode, passes, pixels):
        calls.append((passes, pixels / 16**2))

    def run(self, columns, *, batch_size, **options):
        calls.append(batch_size)
        raise Stop

    calls: list = []
    monkeypatch.setattr(monitor.compiling, "worthwhile", worthwhile)
    monkeypatch.setattr(monitor.Evaluator, "run", run)
    single = tf.distribute.get_strategy()
    for i, (strategy, size) in enumerate(((single, 6), (mirrored, 6), (single, 2))):
        with strategy.scope(), pytest.raises(Stop):
            watch(tmp_path / str(i), batch_size=size, eval_examples=3)
    # Ten evaluations, three passes a batch: of 3 images, 2 on each replica, and 2.
    assert calls == [(30, 3), 3, (30, 2), 4, (60, 2), 2]


def test_training_without_an_attack_has_no_attacked_numbers(tmp_path):
    watch(tmp_path, eval_eps=0.0)
    events = read(tmp_path / "train")
    assert not [tag for tag in events.Tags()["tensors"] if tag.endswith("attacked")]
    about = description(events, "seg/pictures")
    assert about == "Columns: image, target, clean output."


# Attacks.


def a_result(attack: str, group: tuple[str, ...], eps: float, miou: float) -> Result:
    cell = a_cell(attack, group, norm="l2", eps=eps, step_size=eps) if attack else None
    tiles = np.full((3, 128, 128, 3), 7, np.uint8)
    names = ("image", "target/seg", "output/seg", "adversarial", "perturbation")
    scores = {"seg": {"miou": {"value": miou}, "loss": {"value": None}}}
    return Result(cell, scores, 11, dict.fromkeys(names, tiles))


def write_attacks(folder: pathlib.Path, results: list[Result]) -> None:
    settings = {"split": "test", "eps": sorted({r.cell.eps for r in results})}
    clean = a_result("", (), 0, 0.75)
    tensorboard.write_attacks(settings, clean, results, folder)


def smoothed(values, weight=0.6):
    """The exponential average that TensorBoard draws, with its start corrected."""
    means, last = [], 0.0
    for number, value in enumerate(values, 1):
        last = last * weight + (1 - weight) * value
        means.append(last / (1 - weight**number))
    return means


def test_attacks_are_one_run_with_a_curve_over_eps_for_each_attack_and_group(tmp_path):
    write_attacks(
        tmp_path,
        [
            a_result("pgd", ("seg", "depth"), 0.25, 0.5),
            a_result("fgsm", ("seg",), 0.0, 0.75),
            a_result("pgd", ("seg", "depth"), 1.5, 0.25),
            a_result("fgsm", ("seg",), 1.0, 0.125),
        ],
    )
    events = read(tmp_path)
    names = ("pgd on seg+depth (l2, eps x 1000)", "fgsm on seg (l2, eps x 1000)")
    assert set(events.Tags()["tensors"]) == {
        "settings",
        *(
            f"seg_by_eps/{kind}, {name}"
            for kind in ("miou", "pictures")
            for name in names
        ),
    }
    curve = dict(numbers(events, f"seg_by_eps/miou, {names[0]}"))
    assert {eps: curve[eps] for eps in (0, 250, 1500)} == {
        0: 0.75,
        250: 0.5,
        1500: 0.25,
    }
    assert dict(numbers(events, f"seg_by_eps/miou, {names[1]}"))[1000] == 0.125
    about = description(events, f"seg_by_eps/miou, {names[0]}")
    assert "miou of seg; higher is better." in about
    assert "first 11 images of test" in about
    assert "eps times 1000 (l2, the plain l2 norm)" in about
    tag = f"seg_by_eps/pictures, {names[0]}"
    assert [e.step for e in events.Tensors(tag)] == [250, 1500]
    assert picture(events, tag).shape == (
        HEADING + 2 * 128 + GAP,
        5 * 128 + 4 * GAP,
        3,
    )
    assert "attacked output, perturbation." in description(events, tag)


def test_runs_with_other_radii_have_one_axis(tmp_path):
    """Steps are radii times 100, which no tag mentions."""
    for folder, radii in (("a", (1.0, 2.0, 4.0, 8.0)), ("b", (8.0,))):
        results = [a_result("pgd", ("seg",), eps, 0.5) for eps in radii]
        for place, result in enumerate(results):
            threat = dataclasses.replace(result.cell.threat, norm="linf")
            cell = dataclasses.replace(result.cell, threat=threat)
            results[place] = dataclasses.replace(result, cell=cell)
        clean = a_result("", (), 0, 0.75)
        tensorboard.write_attacks(
            {"split": "test"},
            clean,
            results,
            tmp_path / folder,
            more="images made on B",
        )
        events = read(tmp_path / folder)
        assert dict(numbers(events, "seg_by_eps/miou, pgd on seg"))[800] == 0.5
        about = description(events, "seg_by_eps/miou, pgd on seg")
        assert about.endswith("is a straight line. Images made on B.")


@pytest.mark.parametrize("radii", [(1, 2, 4, 8), (0.25, 0.3), (64,), (0.001, 1000)])
def test_default_smoothing_does_not_bend_the_curves(radii):
    values = np.random.default_rng(0).uniform(size=len(radii) + 1)
    points = list(zip((0.0, *radii), values, strict=True))
    scale = tensorboard._scale([0.0, *radii])
    steps, raw_values = zip(*tensorboard.unbendable(points, scale), strict=True)
    assert list(steps) == sorted(set(steps))
    curve = dict(zip(steps, smoothed(raw_values), strict=True))
    for (eps, value), (_, previous) in zip(points[1:], points, strict=False):
        end = curve[round(eps * scale) + tensorboard._REPEATS]
        assert abs(end - value) <= 0.002 * abs(value - previous)
    lines = np.interp(steps, [round(eps * scale) for eps, _ in points], values)
    assert np.abs(lines - list(curve.values())).max() <= 0.07 * np.ptp(values)


def test_plots_are_shown(tmp_path):
    Image.fromarray(np.full((5, 6, 3), 9, np.uint8)).save(tmp_path / "curves.png")
    tensorboard.write_attacks(
        {"split": "test"},
        a_result("", (), 0, 0.75),
        [a_result("pgd", ("seg",), 8.0, 0.5)],
        tmp_path / "run",
        plots={"curves": tmp_path / "curves.png"},
    )
    assert picture(read(tmp_path / "run"), "robustness/curves").shape == (5, 6, 3)


def test_writing_attacks_again_removes_what_it_wrote_and_nothing_else(tmp_path):
    old_results = [a_result(name, ("seg",), 1.0, 0.5) for name in ("pgd", "fgsm")]
    write_attacks(tmp_path, [*old_results, a_result("pgd", ("depth",), 1.0, 0.5)])
    own_files = [
        tmp_path / "results.json",
        tmp_path / "cells" / "0.json",
        tmp_path / "fgsm" / "notes.txt",
        tmp_path / "pgd" / "seg" / "events.out.tfevents.1.someone.else.v2",
    ]
    for path in own_files:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(path.name))
    write_attacks(tmp_path, [a_result("pgd", ("seg", "depth"), 1.0, 0.5)])
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    event_files = {path for path in files if path.name.endswith(".mtr_tf")}
    assert files == {*own_files, *event_files}
    assert {path.parent for path in event_files} == {tmp_path}
    assert len(event_files) == 1
    for path in own_files:
        assert json.loads(path.read_text()) == path.name
    assert not (tmp_path / "fgsm" / "seg").exists()
    assert not (tmp_path / "pgd" / "depth").exists()


# Measures and studies.


def test_measures_are_numbers_over_counts_and_plots(tmp_path):
    (tmp_path / "events.out.tfevents.1.of.an.older.version.mtr_tf_measures").touch()
    (tmp_path / "events.out.tfevents.1.of.a.training.v2").touch()
    facts = {"measure": "tasks", "norm": "l2", "normalisation": "raw"}
    records = [
        {**facts, "quantity": "norm_by_size", "count": 2, "value": 0.5},
        {**facts, "quantity": "norm_by_size", "count": 3, "value": None},
        {**facts, "quantity": "slope", "value": -0.5},
        {
            "measure": "first_order",
            "quantity": "rise",
            "tasks": ["seg", "depth"],
            "count": 2,
            "eps": 0.25,
            "value": 1.5,
        },
        {
            "measure": "first_order",
            "quantity": "rise",
            "norm": "l2",
            "tasks": ["seg"],
            "eps": 0.5,
            "value": 0.5,
        },
    ]
    plot = tmp_path / "measure_tasks.png"
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(plot)
    tensorboard.write_measures(records, [plot], tmp_path)
    events = read(tmp_path)
    assert numbers(events, "measure_tasks/l2_raw") == [(2, 0.5)]
    assert numbers(events, "measure_first_order/seg+depth") == [(250, 1.5)]
    assert numbers(events, "measure_first_order/seg_l2") == [(500, 0.5)]
    assert (picture(events, "measure_tasks") == np.full((4, 6, 3), 7)).all()
    assert len(events.Tags()["tensors"]) == 4
    names = [path.name for path in tmp_path.glob("events*")]
    assert len(names) == 2
    assert "events.out.tfevents.1.of.a.training.v2" in names
