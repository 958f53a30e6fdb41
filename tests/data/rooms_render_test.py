# SPDX-License-Identifier: Apache-2.0
"""Pictures and targets of rooms, against the camera model, brute force and counts."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from process_fixture import imported_by

from mtr_tf.data import parts
from mtr_tf.data.rooms import geometry
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import render
from mtr_tf.data.rooms import sampling
from mtr_tf.data.rooms import scene
from mtr_tf.data.rooms import shading
from mtr_tf.data.rooms import workers

SIZE = 64


@pytest.fixture(scope="module", params=range(3))
def one(request):
    """A scene, what its rays hit, and its targets."""
    drawn = sampling.sample(0, 1, request.param)
    with np.errstate(all="ignore"):
        hits = render.cast(drawn, SIZE, SIZE)
    return drawn, hits, render.render(drawn, SIZE, SIZE)


def camera_points(drawn: scene.Scene, depth: np.ndarray) -> np.ndarray:
    """Camera coordinates [H, W, 3] from z-depth [H, W], by the pinhole formula."""
    height, width = depth.shape
    row, column = np.mgrid[:height, :width] + 0.5
    focal = drawn.camera.focal * width
    x, y = (column - width / 2) / focal, (row - height / 2) / focal
    return np.stack([x * depth, y * depth, depth], axis=-1)


def test_types_and_shapes(one):
    _, _, arrays = one
    table = layout.arrays(SIZE)
    assert set(arrays) == set(table)
    for name, (shape, kind) in table.items():
        assert arrays[name].shape == shape, name
        assert arrays[name].dtype == kind, name


def test_depth_euclidean_is_the_length_of_the_ray(one):
    drawn, hits, arrays = one
    points = camera_points(drawn, hits.depth)
    np.testing.assert_allclose(arrays["depth"][..., 0], hits.depth, rtol=1e-6)
    np.testing.assert_allclose(
        arrays["depth_euclidean"][..., 0], np.linalg.norm(points, axis=-1), rtol=1e-6
    )


def test_normals_face_the_camera_and_give_reshading(one):
    drawn, hits, arrays = one
    normal = arrays["normal"].astype(np.float64)
    points = camera_points(drawn, hits.depth)
    view = -points / np.linalg.norm(points, axis=-1, keepdims=True)
    cosine = (normal * view).sum(-1)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-6)
    assert cosine.min() > -1e-6
    np.testing.assert_allclose(arrays["reshading"][..., 0], cosine, atol=1e-6)


def test_depth_agrees_with_normals(one):
    """On a plane, neighbours are in the tangent plane; else off by k step^2 / 2."""
    drawn, hits, arrays = one
    points = camera_points(drawn, hits.depth)
    normal = arrays["normal"].astype(np.float64)
    surface = hits.owner.astype(int) * 4 + hits.part
    bend = np.abs(arrays["curvature"]).max(-1)
    for axis in (0, 1):
        p, q = (
            np.moveaxis(points, axis, 0)[part] for part in (slice(-1), slice(1, None))
        )
        n, m = (
            np.moveaxis(normal, axis, 0)[part] for part in (slice(-1), slice(1, None))
        )
        first, second = (
            np.moveaxis(surface, axis, 0)[:-1],
            np.moveaxis(surface, axis, 0)[1:],
        )
        bends = np.moveaxis(bend, axis, 0)
        same = (first == second) & ((n * m).sum(-1) > 0.9)
        step = q - p
        off = np.abs((step * n).sum(-1))
        size = np.linalg.norm(step, axis=-1)
        most = np.maximum(bends[:-1], bends[1:])
        plane = same & (most == 0)
        assert plane.sum() > 500
        assert off[plane].max() < 1e-6
        curved = same & (most > 0) & (most < 9)
        assert curved.sum() > 100
        assert (off[curved] <= 0.75 * most[curved] * size[curved] ** 2 + 1e-6).all()


def test_things_are_where_their_equations_say(one):
    """World points that belong to a ball are a radius from its centre, and so on."""
    drawn, hits, arrays = one
    points = [
        origin + hits.depth * ray
        for origin, ray in zip(drawn.camera.position, hits.ray, strict=True)
    ]
    world = np.stack(points, axis=-1)
    faces = [(0, 0.0), (0, drawn.size[0]), (1, 0.0), (1, drawn.size[1])]
    faces += [(2, 0.0), (2, drawn.size[2])]
    for number, (axis, value) in enumerate(faces):
        np.testing.assert_allclose(
            world[hits.owner == number][:, axis], value, atol=1e-12
        )
    inside = (world > -1e-9).all() and (world < np.array(drawn.size) + 1e-9).all()
    assert inside
    names = [*("wall",) * 4, "floor", "ceiling", *(t.kind for t in drawn.things)]
    assert [scene.CLASSES[k] for k in arrays["seg"].ravel()] == [
        names[k] for k in hits.owner.ravel()
    ]
    for number, thing in enumerate(drawn.things):
        seen = hits.owner == 6 + number
        if thing.kind == "sphere" and seen.any():
            radius = thing.shape.high
            distance = np.linalg.norm(world[seen] - np.array(thing.center), axis=-1)
            np.testing.assert_allclose(distance, radius, rtol=1e-9)
            np.testing.assert_allclose(arrays["curvature"][seen], 1 / radius, rtol=1e-5)


def test_windows_hide_nothing(monkeypatch):
    """Looking for a thing only where its ball is projected finds the same pixels."""
    whole = (slice(0, 48), slice(0, 48))
    scenes = [sampling.sample(1, 0, index) for index in range(12)]
    quick = [render.cast(drawn, 48, 48) for drawn in scenes]
    monkeypatch.setattr(render, "_window", lambda *_: whole)
    for drawn, found in zip(scenes, quick, strict=True):
        full = render.cast(drawn, 48, 48)
        np.testing.assert_array_equal(found.owner, full.owner)
        np.testing.assert_array_equal(found.depth, full.depth)


def blocked(drawn: scene.Scene, points: np.ndarray, lamp: np.ndarray) -> np.ndarray:
    """Whether a march from points [N, 3] to the lamp goes through any solid."""
    path = np.linspace(0.003, 1, 750)[:, None, None]
    path = points + path * (lamp - points)
    within = np.zeros(path.shape[:2], bool)
    for thing in drawn.things:
        local = (path - np.array(thing.center)) @ np.array(thing.frame).T
        if isinstance(thing.shape, geometry.Box):
            within |= (np.abs(local) < np.array(thing.shape.half)).all(-1)
        else:
            shape, z = thing.shape, local[..., 2]
            square = (local[..., :2] ** 2).sum(-1)
            within |= (square < shape.a + shape.b * z + shape.c * z * z) & (
                (z > shape.low) & (z < shape.high)
            )
    return within.any(0)


def test_shadows_are_where_marching_finds_them(one):
    drawn, hits, _ = one
    with np.errstate(all="ignore"):
        surface = render.find_surface(drawn, hits)
        bright = shading.shade(drawn, surface)
    rows = np.random.default_rng(0).choice(SIZE * SIZE, 300, replace=False)
    points = np.stack([axis[rows] for axis in surface.point], axis=-1)
    normal = np.stack([axis[rows] for axis in surface.normal], axis=-1)
    albedo, gloss = paint(drawn, surface)
    expected = np.array(drawn.ambient) * (
        0.85 + 0.15 * (normal @ np.array(drawn.sky))[:, None]
    )
    shadowed = np.zeros(len(rows), bool)
    for light in drawn.lights:
        ray = np.array(light.position) - points
        distance = np.linalg.norm(ray, axis=-1)
        cosine = (ray * normal).sum(-1) / distance
        dark = blocked(drawn, points, np.array(light.position))
        shadowed |= dark & (cosine > 0)
        arrives = np.where(dark, 0, np.maximum(cosine, 0)) / (1 + distance**2 / 4)
        expected = expected + arrives[:, None] * np.array(light.color)
    matt = gloss[rows] == 0
    found = np.stack([axis[rows] for axis in bright], axis=-1)
    wrong = np.abs(found - albedo[rows] * expected).max(-1) > 1e-9
    assert (shadowed & matt).sum() > 10
    # A march of finite steps may miss a graze.
    assert (wrong & matt).sum() <= 0.02 * matt.sum()


def paint(drawn: scene.Scene, surface: scene.Surface):
    albedo, gloss = shading.paint(drawn, surface)
    return np.stack(albedo, axis=-1), gloss


def test_a_ball_darkens_the_floor_below_it():
    drawn = sampling.sample(0, 0, 0)
    matt = dataclasses.replace(drawn.faces[0], texture="plain", gloss=0.0)
    ball = scene.Thing(
        "sphere", geometry.sphere(0.4), (2, 2, 1.0), geometry.IDENTITY, matt
    )
    lamp = scene.Light((2.0, 2.0, 2.2), (1.0, 1.0, 1.0))
    camera = scene.Camera(
        (2.0, 0.6, 1.5), ((1, 0, 0), (0, -0.6, -0.8), (0, 0.8, -0.6)), 0.7
    )
    bare = dataclasses.replace(
        drawn, faces=(matt,) * 6, things=(), lights=(lamp,), camera=camera
    )
    full = dataclasses.replace(bare, things=(ball,))
    without = render.render(bare, SIZE, SIZE)["image"].astype(int)
    arrays = render.render(full, SIZE, SIZE)
    with np.errstate(all="ignore"):
        hits = render.cast(full, SIZE, SIZE)
    x, y, z = (
        a + hits.depth * r for a, r in zip(camera.position, hits.ray, strict=True)
    )
    floor = (arrays["seg"] == 0) & (z < 1e-9)
    # Tangents from the lamp 1.2 m above the centre: tan = r / sqrt(1.2^2 - r^2).
    edge = 2.2 * 0.4 / np.sqrt(1.2**2 - 0.4**2)
    away = np.hypot(x - 2, y - 2)
    darker = (arrays["image"].astype(int) - without).sum(-1) < 0
    assert (floor & (away < edge)).sum() > 50
    assert darker[floor & (away < edge - 1e-6)].all()
    assert not darker[floor & (away > edge + 1e-6)].any()


def test_bytes_depend_on_the_key_alone():
    def digest(*key):
        arrays = workers.example(*key)
        data = b"".join(arrays[name].tobytes() for name in layout.arrays(key[-1]))
        return hashlib.sha256(data).hexdigest()

    base = digest(0, 0, 5, 32)
    assert digest(0, 0, 5, 32) == base
    others = {digest(*key) for key in [(1, 0, 5, 32), (0, 1, 5, 32), (0, 0, 6, 32)]}
    assert len(others | {base}) == 4
    # Pinned: another machine, or another NumPy, must find the same bytes.
    assert base == ("56eb10d24fae4526d1035c68434654a08506dc0c37315bd542c56cd9cf1c8e5e")


def test_processes_give_equal_bytes_and_know_no_tensorflow():
    made = list(workers.examples(0, 2, 5, 32, processes=2))
    assert len(made) == 5
    for index, arrays in enumerate(made):
        for name, array in workers.example(0, 2, index, 32).items():
            np.testing.assert_array_equal(arrays[name], array)
    code = "from mtr_tf.data.rooms import workers; workers.example(0, 0, 0, 32)"
    assert "tensorflow" not in imported_by(code)


def test_a_worker_that_fails_is_an_error():
    with pytest.raises(parts.WorkerError, match="ended early"):
        list(workers.examples(-1, 0, 4, 32, processes=2))


def test_sizes_show_the_same_scene():
    """The 2 x 2 pixels around a point of the 64 px depth enclose that of 32 px."""
    agree = []
    for index in range(10):
        small, large = (workers.example(0, 0, index, n)["seg"] for n in (32, 64))
        blocks = large.reshape(32, 2, 32, 2)
        agree.append((blocks == small[:, None, :, None]).any((1, 3)).mean())
    assert min(agree) > 0.98
