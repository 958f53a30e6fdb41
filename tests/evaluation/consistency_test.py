# SPDX-License-Identifier: Apache-2.0
"""Outputs that determine each other: planes by hand, true scenes, and reports."""

from __future__ import annotations

import dataclasses
import json
import math

import cells_fixture
import keras
import numpy as np
import pytest

import mtr_tf
from mtr_tf.data.rooms import render
from mtr_tf.data.rooms import sampling
from mtr_tf.data.source import Columns
from mtr_tf.evaluation import consistency
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.tasks import TASKS

SIZE = 24


def plane(normal, distance, focal) -> np.ndarray:
    """The depth of the plane n . X = -distance on the pixels' rays, [1, H, W, 1]."""
    normal = np.array(normal) / np.linalg.norm(normal)
    places = (np.arange(SIZE) + 0.5 - SIZE / 2) / (focal * SIZE)
    ray = normal[0] * places[None, :] + normal[1] * places[:, None] + normal[2]
    return (-distance / ray)[None, :, :, None].astype(np.float32)


def flat(normal) -> np.ndarray:
    normal = np.array(normal, np.float32) / np.linalg.norm(normal)
    return np.broadcast_to(normal, (1, SIZE, SIZE, 3))


def test_a_tilted_plane_fits_its_normal_whatever_the_camera_and_the_scale():
    normal = (0.3, -0.5, -0.8)
    for distance, focal in ((1.0, 0.7), (4.0, 1.3)):
        depth = plane(normal, distance, focal)
        assert depth.min() > 0
        (angle,) = consistency.tilt_angle(depth, 7 * flat(normal))
        assert angle < 0.1
        # Turned by 30 degrees about the viewing axis, the normal is off by 30 degrees.
        turn = np.radians(30)
        x, y, z = normal
        turned_normal = (
            np.cos(turn) * x - np.sin(turn) * y,
            np.sin(turn) * x + np.cos(turn) * y,
            z,
        )
        (angle,) = consistency.tilt_angle(depth, flat(turned_normal))
        assert angle == pytest.approx(30, abs=0.1)
        (angle,) = consistency.tilt_angle(depth, flat((-0.3, 0.5, -0.8)))
        assert angle == pytest.approx(180, abs=0.1)
    (angle,) = consistency.tilt_angle(np.ones_like(depth), flat(normal))
    assert angle == pytest.approx(90)  # A flat depth says nothing about the tilt.
    (angle,) = consistency.tilt_angle(depth, flat((0, 0, -1)))
    assert np.isnan(angle)  # Nothing is tilted.


def test_what_is_not_known_does_not_count():
    normal, rng = (0.3, -0.5, -0.8), np.random.default_rng(0)
    depth = plane(normal, 2.0, 1.0)
    valid = rng.uniform(size=(1, SIZE, SIZE)) > 0.02
    sparse_depth = np.where(valid[..., None], depth, 0)
    (angle,) = consistency.tilt_angle(sparse_depth, flat(normal))
    assert angle > 2
    (angle,) = consistency.tilt_angle(sparse_depth, flat(normal), valid)
    assert angle < 0.1
    edges = np.zeros_like(depth)
    depth[:, :, 10:] += 1.0
    edges[:, :, 9:11] = 1
    sparse_depth = np.where(valid[..., None], depth, 0)
    (misfit,) = consistency.edge_correlation(sparse_depth, edges)
    (fit,) = consistency.edge_correlation(sparse_depth, edges, valid)
    assert misfit < 0.9 < 0.99 < fit
    empty_mask = np.zeros_like(valid)
    assert np.isnan(consistency.tilt_angle(depth, flat(normal), empty_mask))
    assert np.isnan(consistency.edge_correlation(depth, edges, empty_mask))
    for value in (np.nan, np.inf):  # Without a warning from NumPy.
        depth[0, 3, 3] = value
        assert np.isnan(consistency.tilt_angle(depth, flat(normal)))
        assert np.isnan(consistency.tilt_angle(edges + 1, value * flat(normal)))
        assert np.isnan(consistency.edge_correlation(depth, edges))
        assert np.isnan(consistency.edge_correlation(edges + 1, value + edges))


def test_masks_of_the_data_are_looked_at():
    normal = (0.3, -0.5, -0.8)
    depth = plane(normal, 2.0, 1.0)
    masks = np.ones((1, SIZE, SIZE), np.uint8)
    masks[:, 5:9, 5:9] = 0
    targets = {"depth": depth * masks[..., None], "normal": flat(normal)}
    columns = Columns(np.zeros((1, SIZE, SIZE, 3), np.uint8), targets, {"depth": masks})
    tasks = TASKS.select(["depth", "normal"])
    relations = consistency.relations(tasks, {}, (SIZE, SIZE, 3))
    ((name, angle),) = consistency.of_targets(relations, columns, 1).items()
    assert name == "depth+normal"
    assert angle < 0.1


def test_two_planes_have_a_step_between_them_and_none_within():
    depth = plane((0.4, 0.1, -0.9), 2.0, 1.0)
    depth[:, :, 10:] += 1.0  # Not exactly a plane, but smooth.
    steps = consistency.depth_steps(depth[..., 0])
    np.testing.assert_array_equal(steps[:, :, 9:11], 1)
    assert steps[:, :, [*range(9), *range(11, SIZE)]].max() < 0.05
    edges = np.zeros_like(depth)
    edges[:, :, 9:11] = 1
    (fit,) = consistency.edge_correlation(depth, edges)
    assert fit > 0.99
    (no_fit,) = consistency.edge_correlation(depth, 0 * edges)
    assert np.isnan(no_fit)


def test_true_scenes_are_consistent_and_those_of_two_images_are_not():
    scenes = [render.render(sampling.sample(0, 1, i), 32, 32) for i in range(8)]
    maps = {
        name: np.stack([scene[name] for scene in scenes])
        for name in ("depth", "normal", "edge_occlusion")
    }
    relations = consistency.relations(TASKS, {}, (32, 32, 3))
    assert [r.name for r in relations] == ["depth+normal", "depth+edge_occlusion"]
    scene_rows = consistency.rows_of(relations, maps)
    mixed_rows = consistency.rows_of(
        relations, maps | {"depth": np.roll(maps["depth"], 1, 0)}
    )
    tilt, edges = (
        ("depth+normal", "tilt_angle"),
        (relations[1].name, "edge_correlation"),
    )
    assert scene_rows[tilt[0]][tilt[1]].mean() < 8
    assert mixed_rows[tilt[0]][tilt[1]].mean() > 40
    assert scene_rows[edges[0]][edges[1]].mean() > 0.8
    assert abs(mixed_rows[edges[0]][edges[1]].mean()) < 0.3


def test_only_depth_in_metres_and_maps_are_compared():
    assert not consistency.relations(TASKS, {"depth": "1/m"}, (32, 32))
    assert not consistency.relations(TASKS.select("seg,normal"), {}, (32, 32))
    assert not consistency.relations(TASKS, {}, (2, 32))
    depth_in_pixels = dataclasses.replace(TASKS["depth"], unit="px")
    assert not consistency.relations(TASKS.replaced(depth_in_pixels), {}, (32, 32))


@pytest.mark.parametrize(
    ("attacked", "means"),
    [
        ([5.0, math.inf, 7.0, 9.0], (2.5, 7.0, 2)),
        ([math.nan] * 4, (None, None, 0)),
    ],
)
def test_clean_and_attacked_are_of_the_same_images(attacked, means):
    def result(values, cell=None):
        rows = np.array(values, np.float64)[:, np.newaxis]
        consistent_rows = {r.name: {r.measure: rows} for r in relations}
        return Result(cell, {}, 4, {}, consistent_rows=consistent_rows)

    relations = consistency.relations(TASKS.select("depth,normal"), {}, (32, 32))
    clean = result([1.0, 2.0, math.nan, 4.0])
    cell = cells_fixture.a_cell(tasks=("depth",))
    (record,) = consistency.records(relations, clean, [result(attacked, cell)], {})
    assert (record["clean"], record["attacked_value"], record["n"]) == means


@pytest.mark.slow
def test_attacks_report_it(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    y = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(4 * image)
    depth = keras.layers.Conv2D(1, 3, padding="same", activation="softplus")(y)
    normal = keras.layers.Conv2D(3, 3, padding="same")(y)
    model = keras.Model(image, {"depth": depth, "normal": normal})
    scenes = [render.render(sampling.sample(0, 1, i), 16, 16) for i in range(4)]
    examples = [
        {
            "image": scene["image"],
            "targets": {name: scene[name] for name in ("depth", "normal")},
        }
        for scene in scenes
    ]
    settings = {"eps": [0, 8], "steps": 3, "checks": False, "attack_tasks": "depth"}
    settings |= {"attacks": ("pgd", "worst"), "ensemble": ("pgd", "fgsm")}
    results = mtr_tf.evaluate(model, examples, out=tmp_path, **settings)
    assert json.loads((tmp_path / "consistency.json").read_text()) == list(
        results.consistency
    )
    outputs = {
        name: output.numpy()
        for name, output in model(
            np.stack([e["image"] for e in examples]) / np.float32(255)
        ).items()
    }
    expected = consistency.tilt_angle(outputs["depth"], outputs["normal"]).mean()
    targets = {n: np.stack([s[n] for s in scenes]) for n in ("depth", "normal")}
    target_angle = consistency.tilt_angle(targets["depth"], targets["normal"]).mean()
    assert len(results.consistency) == 4
    for record in results.consistency:
        assert record["clean"] == pytest.approx(expected, rel=1e-3)
        assert record["targets"] == pytest.approx(target_angle)
        if not record["eps"]:
            assert record["attacked_value"] == pytest.approx(record["clean"], rel=1e-3)
    attacked_values = {r["attacked_value"] for r in results.consistency if r["eps"]}
    assert all(value != pytest.approx(expected, rel=1e-3) for value in attacked_values)
    assert "how well outputs fit each other" in results.table()
    rerun = mtr_tf.evaluate(model, examples, out=tmp_path, **settings)  # From files.
    assert rerun.consistency == results.consistency
