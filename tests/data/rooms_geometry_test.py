# SPDX-License-Identifier: Apache-2.0
"""Solids against closed forms, brute force and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from mtr_tf.data.rooms import geometry

SHAPES = {
    "sphere": geometry.sphere(0.7),
    "cylinder": geometry.cylinder(0.5, 0.8),
    "cone": geometry.cone(0.6, 0.9),
    "spool": geometry.spool(0.3, 0.65, 0.7),
    "box": geometry.Box((0.4, 0.6, 0.8)),
}


def inside(name: str, p: np.ndarray) -> np.ndarray:
    """Whether points [..., 3] are in the solid, by its textbook definition."""
    x, y, z = np.moveaxis(p, -1, 0)
    rho = np.hypot(x, y)
    return {
        "sphere": np.sqrt(x**2 + y**2 + z**2) <= 0.7,
        "cylinder": (rho <= 0.5) & (np.abs(z) <= 0.8),
        "cone": (rho <= 0.6 * (0.9 - z) / 1.8) & (np.abs(z) <= 0.9),
        "spool": (rho**2 / 0.3**2 - z**2 * ((0.65 / 0.3) ** 2 - 1) / 0.7**2 <= 1)
        & (np.abs(z) <= 0.7),
        "box": (np.abs(x) <= 0.4) & (np.abs(y) <= 0.6) & (np.abs(z) <= 0.8),
    }[name]


def random_rays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins outside all shapes, and directions roughly towards them."""
    rng = np.random.default_rng(3)
    origin = rng.normal(size=(count, 3))
    origin *= 3 / np.linalg.norm(origin, axis=1, keepdims=True)
    return origin, rng.uniform(-0.8, 0.8, (count, 3)) - origin


def cast(name: str, origin: np.ndarray, direction: np.ndarray):
    with np.errstate(divide="ignore", invalid="ignore"):
        return SHAPES[name].hit(tuple(origin.T), tuple(direction.T))


@pytest.mark.parametrize("name", SHAPES)
def test_first_entry_agrees_with_marching(name):
    origin, direction = random_rays(400)
    t, _ = cast(name, origin, direction)
    steps = np.linspace(0, 2, 4001)
    path = origin[:, None] + steps[:, None] * direction[:, None]
    is_inside = inside(name, path)
    expected = np.where(is_inside.any(1), steps[is_inside.argmax(1)], np.inf)
    assert 100 < np.isfinite(expected).sum() < 400
    # Marching may miss a solid that a ray grazes, never the other way round.
    hit = np.isfinite(expected)
    assert (t[hit] <= expected[hit] + 1e-9).all()
    assert (expected[hit] - t[hit] <= 6e-4).all()
    grazes = np.isfinite(t) & ~hit
    assert grazes.sum() <= 4
    assert np.isfinite(t).sum() - hit.sum() == grazes.sum()


@pytest.mark.parametrize("name", SHAPES)
def test_rays_along_the_axes(name):
    """Directions with exact zeros, as of an upright camera."""
    origin = np.array([[3.0, 0.01, 0.02], [0.01, -3.0, 0.02], [0.01, 0.02, 3.0]])
    direction = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    t, _ = cast(name, origin, direction)
    outer_points = origin + (t - 1e-6)[:, None] * direction
    inner_points = origin + (t + 1e-6)[:, None] * direction
    assert not inside(name, outer_points).any()
    assert inside(name, inner_points).all()


def surface_points(name: str, count: int = 3000):
    origin, direction = random_rays(count)
    t, part = cast(name, origin, direction)
    hit = np.isfinite(t)
    return (origin + t[:, None] * direction)[hit], part[hit]


@pytest.mark.parametrize("name", SHAPES)
def test_points_are_on_the_surface_and_normals_point_out(name):
    p, part = surface_points(name)
    normal = np.stack(SHAPES[name].normal(tuple(p.T), part), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-12)
    step = 1e-7
    outward = inside(name, p - step * normal) & ~inside(name, p + step * normal)
    assert outward.mean() > 0.999  # The rest is within 1e-7 of an edge.


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_orthogonal_to_the_surface(name):
    """Hits of neighbouring rays differ by a tangent, up to second order."""
    origin, direction = random_rays(2000)
    t, part = cast(name, origin, direction)
    hit = np.isfinite(t)
    origin, direction, t, part = origin[hit], direction[hit], t[hit], part[hit]
    p = origin + t[:, None] * direction
    normal = np.stack(SHAPES[name].normal(tuple(p.T), part), axis=-1)
    step = 1e-6
    for axis in np.eye(3):
        moved_direction = direction + step * axis
        moved_t, moved_part = cast(name, origin, moved_direction)
        valid = np.isfinite(moved_t) & (part == moved_part)
        moved_t[~valid] = 0
        q = origin + moved_t[:, None] * moved_direction
        valid &= np.abs((normal * direction).sum(1)) > 0.2  # Not at the rim.
        valid &= (p[:, 2] < 0.8) | (name != "cone")  # Not at the apex.
        if name == "box":  # The same face, not its neighbour across an edge.
            q_normal = np.stack(SHAPES[name].normal(tuple(q.T), moved_part), axis=-1)
            valid &= (normal * q_normal).sum(1) > 0.9
        distance = np.abs(((q - p) * normal).sum(1))[valid]
        assert valid.sum() > 200
        assert distance.max() < 1e-9


def numeric_curvatures(name: str, p: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Eigenvalues of the derivative of the normal, [N, 2], by central differences."""
    shape, step = SHAPES[name], 1e-5

    def normals(points):
        return np.stack(shape.normal(tuple(points.T), part), axis=-1)

    jacobian = np.stack(
        [
            (normals(p + step * axis) - normals(p - step * axis)) / (2 * step)
            for axis in np.eye(3)
        ],
        axis=-1,
    )
    normal = normals(p)
    tangent = np.eye(3) - normal[:, :, None] * normal[:, None, :]
    operator = tangent @ jacobian @ tangent
    values = np.linalg.eigvals(operator).real
    # Three eigenvalues, one of them 0 along the normal: drop the smallest in size.
    order = np.argsort(np.abs(values), axis=1)
    return np.sort(np.take_along_axis(values, order[:, 1:], axis=1), axis=1)


@pytest.mark.parametrize("name", SHAPES)
def test_curvature_is_the_derivative_of_the_normal(name):
    p, part = surface_points(name)
    selection = np.ones(len(p), bool)
    if name == "cone":
        selection = p[:, 2] < 0.7
    p, part = p[selection], part[selection]
    curvature = np.sort(np.stack(SHAPES[name].curvature(tuple(p.T), part), -1), axis=1)
    np.testing.assert_allclose(curvature, numeric_curvatures(name, p, part), atol=2e-4)


def test_curvatures_in_closed_form():
    p, part = surface_points("sphere")
    np.testing.assert_allclose(SHAPES["sphere"].curvature(tuple(p.T), part), 1 / 0.7)

    p, part = surface_points("cylinder")
    k_around, k_along = SHAPES["cylinder"].curvature(tuple(p.T), part)
    np.testing.assert_allclose(k_around, np.where(part == 0, 1 / 0.5, 0))
    assert not k_along.any()

    # A cone of half angle a: cos(a) / radius around, 0 along the line to the apex.
    p, part = surface_points("cone")
    k_around, k_along = SHAPES["cone"].curvature(tuple(p.T), part)
    radius = np.hypot(p[:, 0], p[:, 1])
    cosine = 1.8 / np.hypot(1.8, 0.6)
    expected = np.where(part == 0, cosine / radius, 0)
    np.testing.assert_allclose(k_around, expected, rtol=1e-6)
    np.testing.assert_allclose(k_along, 0, atol=1e-6)

    # A hyperboloid's waist: 1 / waist around, -waist / c^2 along, z^2 / c^2 = 1 at c.
    point, side = (np.array([0.3]), np.zeros(1), np.zeros(1)), np.zeros(1, np.uint8)
    k_around, k_along = SHAPES["spool"].curvature(point, side)
    square = 0.7**2 / ((0.65 / 0.3) ** 2 - 1)
    np.testing.assert_allclose([k_around[0], k_along[0]], [1 / 0.3, -0.3 / square])

    p, part = surface_points("box")
    assert not np.any(SHAPES["box"].curvature(tuple(p.T), part))


@pytest.mark.parametrize("name", SHAPES)
def test_ball_holds_the_solid(name):
    p, _ = surface_points(name)
    reach = np.linalg.norm(p, axis=1).max()
    assert reach <= SHAPES[name].radius * (1 + 1e-12)
    assert SHAPES[name].radius < 1.1 * reach


def test_rotations():
    from mtr_tf.data.rooms.stream import Stream

    stream = Stream(1)
    for _ in range(20):
        a, b = stream.rotation(), stream.rotation()
        matrix = np.array(a)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
        assert np.linalg.det(matrix) > 0
        v = (0.3, -1.2, 0.7)
        np.testing.assert_allclose(geometry.into(a, v), matrix @ v)
        np.testing.assert_allclose(geometry.out_of(a, geometry.into(a, v)), v)
        np.testing.assert_allclose(geometry.combine(a, b), matrix @ np.array(b))
