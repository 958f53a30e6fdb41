# SPDX-License-Identifier: Apache-2.0
"""Pictures and targets of rooms, against the camera model and brute force."""

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
    """A room, the hits of its rays, and its arrays."""
    room = sampling.sample(0, 1, request.param)
    with np.errstate(all="ignore"):
        hits = render.cast(room, SIZE, SIZE)
    return room, hits, render.render(room, SIZE, SIZE)


def camera_points(room: scene.Scene, depth: np.ndarray) -> np.ndarray:
    """Camera coordinates [H, W, 3] from z-depth [H, W], by the pinhole formula."""
    height, width = depth.shape
    row, column = np.mgrid[:height, :width] + 0.5
    focal = room.camera.focal * width
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
    room, hits, arrays = one
    points = camera_points(room, hits.depth)
    np.testing.assert_allclose(arrays["depth"][..., 0], hits.depth, rtol=1e-6)
    np.testing.assert_allclose(
        arrays["depth_euclidean"][..., 0], np.linalg.norm(points, axis=-1), rtol=1e-6
    )


def test_normals_face_the_camera_and_give_reshading(one):
    room, hits, arrays = one
    normal = arrays["normal"].astype(np.float64)
    points = camera_points(room, hits.depth)
    view = -points / np.linalg.norm(points, axis=-1, keepdims=True)
    cosine = (normal * view).sum(-1)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-6)
    assert cosine.min() > -1e-6
    np.testing.assert_allclose(arrays["reshading"][..., 0], cosine, atol=1e-6)


def test_depth_agrees_with_normals(one):
    """Neighbours are in a plane's tangent plane, else off it by about k step^2 / 2."""
    room, hits, arrays = one
    points = camera_points(room, hits.depth)
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
        same_surface = (first == second) & ((n * m).sum(-1) > 0.9)
        step = q - p
        distance = np.abs((step * n).sum(-1))
        size = np.linalg.norm(step, axis=-1)
        max_bend = np.maximum(bends[:-1], bends[1:])
        plane = same_surface & (max_bend == 0)
        assert plane.sum() > 500
        assert distance[plane].max() < 1e-6
        curved = same_surface & (max_bend > 0) & (max_bend < 9)
        assert curved.sum() > 100
        assert (
            distance[curved] <= 0.75 * max_bend[curved] * size[curved] ** 2 + 1e-6
        ).all()


def test_things_are_where_their_equations_say(one):
    """Points lie on the planes of their faces, or a radius from their ball's centre."""
    room, hits, arrays = one
    points = [
        origin + hits.depth * ray
        for origin, ray in zip(room.camera.position, hits.ray, strict=True)
    ]
    world = np.stack(points, axis=-1)
    faces = [(0, 0.0), (0, room.size[0]), (1, 0.0), (1, room.size[1])]
    faces += [(2, 0.0), (2, room.size[2])]
    for number, (axis, value) in enumerate(faces):
        np.testing.assert_allclose(
            world[hits.owner == number][:, axis], value, atol=1e-12
        )
    inside = (world > -1e-9).all() and (world < np.array(room.size) + 1e-9).all()
    assert inside
    names = [*("wall",) * 4, "floor", "ceiling", *(t.kind for t in room.things)]
    assert [scene.CLASSES[k] for k in arrays["seg"].ravel()] == [
        names[k] for k in hits.owner.ravel()
    ]
    for number, thing in enumerate(room.things):
        visible = hits.owner == 6 + number
        if thing.kind == "sphere" and visible.any():
            radius = thing.shape.high
            distance = np.linalg.norm(world[visible] - np.array(thing.center), axis=-1)
            np.testing.assert_allclose(distance, radius, rtol=1e-9)
            np.testing.assert_allclose(
                arrays["curvature"][visible], 1 / radius, rtol=1e-5
            )


def test_windows_hide_nothing(monkeypatch):
    """Casting rays only within the window of a thing's ball gives the same pixels."""
    window = (slice(0, 48), slice(0, 48))
    rooms = [sampling.sample(1, 0, index) for index in range(12)]
    results = [render.cast(room, 48, 48) for room in rooms]
    monkeypatch.setattr(render, "_window", lambda *_: window)
    for room, hits in zip(rooms, results, strict=True):
        expected = render.cast(room, 48, 48)
        np.testing.assert_array_equal(hits.owner, expected.owner)
        np.testing.assert_array_equal(hits.depth, expected.depth)


def blocked(room: scene.Scene, points: np.ndarray, lamp: np.ndarray) -> np.ndarray:
    """Whether a solid is between points [N, 3] and the lamp, by marching: bool [N]."""
    path = np.linspace(0.003, 1, 750)[:, None, None]
    path = points + path * (lamp - points)
    inside = np.zeros(path.shape[:2], bool)
    for thing in room.things:
        local_path = (path - np.array(thing.center)) @ np.array(thing.frame).T
        if isinstance(thing.shape, geometry.Box):
            inside |= (np.abs(local_path) < np.array(thing.shape.half)).all(-1)
        else:
            shape, z = thing.shape, local_path[..., 2]
            square = (local_path[..., :2] ** 2).sum(-1)
            inside |= (square < shape.a + shape.b * z + shape.c * z * z) & (
                (z > shape.low) & (z < shape.high)
            )
    return inside.any(0)


def test_shadows_are_where_marching_finds_them(one):
    room, hits, _ = one
    with np.errstate(all="ignore"):
        surface = render.find_surface(room, hits)
        radiance = shading.shade(room, surface)
    rows = np.random.default_rng(0).choice(SIZE * SIZE, 300, replace=False)
    points = np.stack([axis[rows] for axis in surface.point], axis=-1)
    normal = np.stack([axis[rows] for axis in surface.normal], axis=-1)
    albedo, gloss = paint(room, surface)
    expected = np.array(room.ambient) * (
        0.85 + 0.15 * (normal @ np.array(room.sky))[:, None]
    )
    shadow = np.zeros(len(rows), bool)
    for light in room.lights:
        ray = np.array(light.position) - points
        distance = np.linalg.norm(ray, axis=-1)
        cosine = (ray * normal).sum(-1) / distance
        dark = blocked(room, points, np.array(light.position))
        shadow |= dark & (cosine > 0)
        irradiance = np.where(dark, 0, np.maximum(cosine, 0)) / (1 + distance**2 / 4)
        expected = expected + irradiance[:, None] * np.array(light.color)
    matt_pixels = gloss[rows] == 0
    colors = np.stack([axis[rows] for axis in radiance], axis=-1)
    mismatch = np.abs(colors - albedo[rows] * expected).max(-1) > 1e-9
    assert (shadow & matt_pixels).sum() > 10
    # Finite steps may miss a solid that the ray grazes.
    assert (mismatch & matt_pixels).sum() <= 0.02 * matt_pixels.sum()


def paint(room: scene.Scene, surface: scene.Surface):
    albedo, gloss = shading.paint(room, surface)
    return np.stack(albedo, axis=-1), gloss


def test_a_ball_darkens_the_floor_below_it():
    room = sampling.sample(0, 0, 0)
    material = dataclasses.replace(room.faces[0], texture="plain", gloss=0.0)
    ball = scene.Thing(
        "sphere", geometry.sphere(0.4), (2, 2, 1.0), geometry.IDENTITY, material
    )
    lamp = scene.Light((2.0, 2.0, 2.2), (1.0, 1.0, 1.0))
    camera = scene.Camera(
        (2.0, 0.6, 1.5), ((1, 0, 0), (0, -0.6, -0.8), (0, 0.8, -0.6)), 0.7
    )
    bare_room = dataclasses.replace(
        room, faces=(material,) * 6, things=(), lights=(lamp,), camera=camera
    )
    full_room = dataclasses.replace(bare_room, things=(ball,))
    bare_image = render.render(bare_room, SIZE, SIZE)["image"].astype(int)
    arrays = render.render(full_room, SIZE, SIZE)
    with np.errstate(all="ignore"):
        hits = render.cast(full_room, SIZE, SIZE)
    x, y, z = (
        a + hits.depth * r for a, r in zip(camera.position, hits.ray, strict=True)
    )
    floor = (arrays["seg"] == 0) & (z < 1e-9)
    # Tangents from the lamp 1.2 m above the centre: tan = r / sqrt(1.2^2 - r^2).
    edge = 2.2 * 0.4 / np.sqrt(1.2**2 - 0.4**2)
    distance = np.hypot(x - 2, y - 2)
    shadow = (arrays["image"].astype(int) - bare_image).sum(-1) < 0
    assert (floor & (distance < edge)).sum() > 50
    assert shadow[floor & (distance < edge - 1e-6)].all()
    assert not shadow[floor & (distance > edge + 1e-6)].any()


def test_bytes_depend_on_the_key_alone():
    def digest(*key):
        arrays = workers.example(*key)
        data = b"".join(arrays[name].tobytes() for name in layout.arrays(key[-1]))
        return hashlib.sha256(data).hexdigest()

    base = digest(0, 0, 5, 32)
    assert digest(0, 0, 5, 32) == base
    other_digests = {
        digest(*key) for key in [(1, 0, 5, 32), (0, 1, 5, 32), (0, 0, 6, 32)]
    }
    assert len(other_digests | {base}) == 4
    # Pinned: another machine, or another NumPy, must find the same bytes.
    assert base == ("56eb10d24fae4526d1035c68434654a08506dc0c37315bd542c56cd9cf1c8e5e")


def test_processes_give_equal_bytes_and_know_no_tensorflow():
    examples = list(workers.examples(0, 2, 5, 32, processes=2))
    assert len(examples) == 5
    for index, arrays in enumerate(examples):
        for name, array in workers.example(0, 2, index, 32).items():
            np.testing.assert_array_equal(arrays[name], array)
    code = "from mtr_tf.data.rooms import workers; workers.example(0, 0, 0, 32)"
    assert "tensorflow" not in imported_by(code)


def test_a_worker_that_fails_is_an_error():
    with pytest.raises(parts.WorkerError, match="ended early"):
        list(workers.examples(-1, 0, 4, 32, processes=2))


def test_sizes_show_the_same_scene():
    """Nearly each pixel at 32 px has the class of one of its 2 x 2 pixels at 64 px."""
    agreement = []
    for index in range(10):
        small_seg, large_seg = (
            workers.example(0, 0, index, n)["seg"] for n in (32, 64)
        )
        blocks = large_seg.reshape(32, 2, 32, 2)
        agreement.append((blocks == small_seg[:, None, :, None]).any((1, 3)).mean())
    assert min(agreement) > 0.98
