# SPDX-License-Identifier: Apache-2.0
"""Where rays meet solids, and the normals and principal curvatures there, exactly.

Two kinds of solid are enough. A *round* solid is the part between two planes of

    x^2 + y^2 <= A + B z + C z^2            (in its own frame)

which is a sphere for (r^2, 0, -1), a cylinder for (r^2, 0, 0), a cone of height h for
(r^2, -2 r^2 / h, r^2 / h^2) and a hyperboloid of one sheet for C > 0 and no apex. A
*box* is |x| <= a, |y| <= b, |z| <= c.

Everything is float64 and uses only + - * / sqrt, so that results are the same bits on
any machine (see `render`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeAlias

import numpy as np

# A vector whose parts are numbers or arrays of one shape.
Vector: TypeAlias = tuple
Rotation: TypeAlias = tuple[Vector, ...]  # Its three axes.

IDENTITY: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Round:
    """The solid x^2 + y^2 <= q(z) = a + b z + c z^2 with low <= z <= high (metres).

    Its parts are 0 for the side, 1 and 2 for the flat ends at `low` and `high`.
    """

    a: float
    b: float
    c: float
    low: float
    high: float

    def profile(self, z: float | np.ndarray) -> float | np.ndarray:
        """Squared radius at height z."""
        return self.a + z * (self.b + z * self.c)

    @functools.cached_property
    def radius(self) -> float:
        """Radius of a ball around the frame's origin that holds the solid.

        The squared distance q(z) + z^2 of the rim is quadratic in z: its maximum is at
        an end, or where its derivative is zero.
        """
        heights = [self.low, self.high]
        if self.c + 1 < 0:
            heights.append(-self.b / (2 * (self.c + 1)))
        squares = [
            max(self.profile(z), 0.0) + z * z
            for z in heights
            if self.low <= z <= self.high
        ]
        return math.sqrt(max(squares))

    def hit(self, o: Vector, d: Vector) -> tuple[np.ndarray, np.ndarray]:
        """First entry of rays o + t d, t > 0, that start outside.

        Args:
          o: origin in the solid's frame; parts are floats or arrays.
          d: direction in the solid's frame, of any length; parts are arrays.

        Returns:
          t (float64, inf for a miss) and the part that is hit (uint8).
        """
        # Substituted into F = x^2 + y^2 - q(z): alpha t^2 + 2 beta t + gamma = 0.
        # 1e-300 matters only on a cylinder's axis, where it puts the roots far away.
        alpha = d[0] * d[0] + d[1] * d[1] - self.c * (d[2] * d[2]) + 1e-300
        beta = o[0] * d[0] + o[1] * d[1] - (0.5 * self.b + self.c * o[2]) * d[2]
        gamma = o[0] * o[0] + o[1] * o[1] - self.profile(o[2])
        disc = beta * beta - alpha * gamma
        # The root pair that does not cancel: both stay exact when alpha is near 0.
        half = -(beta + np.copysign(np.sqrt(np.maximum(disc, 0.0)), beta))
        first, second = half / alpha, gamma / half
        near, far = np.minimum(first, second), np.maximum(first, second)
        step = 1 / d[2]
        first, second = (self.low - o[2]) * step, (self.high - o[2]) * step
        enter, leave = np.minimum(first, second), np.maximum(first, second)
        # Along most rays F < 0 between the roots.
        t = np.maximum(near, enter)
        hits = (disc >= 0) & (t <= np.minimum(far, leave)) & (t > 0)
        if self.c > 0:  # Where alpha < 0: outside them, or everywhere if none.
            far_entry = np.maximum(far, enter)
            near_hit = (enter > 0) & ((enter <= near) | (disc < 0))
            far_hit = (disc >= 0) & (far_entry <= leave) & (far_entry > 0)
            is_steep = alpha < 0
            t = np.where(is_steep, np.where(near_hit, enter, far_entry), t)
            hits = np.where(is_steep, near_hit | far_hit, hits)
        end = np.where(d[2] > 0, 1, 2).astype(np.uint8)
        return np.where(hits, t, np.inf), np.where(t == enter, end, np.uint8(0))

    def normal(self, p: Vector, part: np.ndarray) -> Vector:
        """Outward unit normals at points of the surface."""
        side = part == 0
        x, y, slope = p[0], p[1], -(0.5 * self.b + self.c * p[2])
        length = np.sqrt(x * x + y * y + slope * slope)
        scale = np.where(side, 1.0 / np.maximum(length, 1e-12), 0.0)
        ends = np.where(part == 1, -1.0, 1.0)
        return x * scale, y * scale, np.where(side, slope * scale, ends)

    def curvature(self, p: Vector, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Principal curvatures (1/m, unordered), positive where convex.

        With S = |grad F| = sqrt(4 q + q'^2), a surface of revolution of radius sqrt(q)
        has curvature 2 / S along the parallel and 2 (b^2 - 4 a c) / S^3 along the
        meridian. At a cone's apex the first is infinite; it is cut at 1e6.
        """
        q = np.maximum(self.profile(p[2]), 0.0)
        slope = self.b + 2 * self.c * p[2]
        size = np.maximum(np.sqrt(4 * q + slope * slope), 2e-6)
        side = part == 0
        parallel = 2 / size
        meridian = 2 * (self.b * self.b - 4 * self.a * self.c) / (size * size * size)
        return np.where(side, parallel, 0.0), np.where(side, meridian, 0.0)


@dataclasses.dataclass(frozen=True)
class Box:
    """The box |x| <= a, |y| <= b, |z| <= c; parts 0, 1, 2 are its x, y and z faces."""

    half: tuple[float, float, float]

    @functools.cached_property
    def radius(self) -> float:
        """Radius of the ball around the box."""
        a, b, c = self.half
        return math.sqrt(a * a + b * b + c * c)

    def hit(self, o: Vector, d: Vector) -> tuple[np.ndarray, np.ndarray]:
        """First entry of rays that start outside; see `Round.hit`."""
        near, far = [], []
        for half, origin, direction in zip(self.half, o, d, strict=True):
            step = 1 / direction
            first, second = (-half - origin) * step, (half - origin) * step
            near.append(np.minimum(first, second))
            far.append(np.maximum(first, second))
        entry = np.maximum(np.maximum(near[0], near[1]), near[2])
        leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        part = np.where(entry == near[0], 0, np.where(entry == near[1], 1, 2))
        hits = (entry <= leave) & (entry > 0)
        return np.where(hits, entry, np.inf), part.astype(np.uint8)

    def normal(self, p: Vector, part: np.ndarray) -> Vector:
        """Outward unit normals at points of the surface."""
        return tuple(
            np.where(part == axis, np.where(p[axis] > 0, 1.0, -1.0), 0.0)
            for axis in range(3)
        )

    def curvature(self, p: Vector, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Principal curvatures: a box is flat."""
        return np.zeros(part.shape), np.zeros(part.shape)


def sphere(r: float) -> Round:
    """A ball around the origin."""
    return Round(r * r, 0.0, -1.0, -r, r)


def cylinder(r: float, half_height: float) -> Round:
    """A cylinder around the z axis, with flat ends at z = -half_height, half_height."""
    return Round(r * r, 0.0, 0.0, -half_height, half_height)


def cone(r: float, half_height: float) -> Round:
    """A cone: base of radius r at z = -half_height, apex at z = half_height."""
    square = (r / (2 * half_height)) * (r / (2 * half_height))
    return Round(
        square * half_height * half_height,
        -2 * square * half_height,
        square,
        -half_height,
        half_height,
    )


def spool(waist: float, rim: float, half_height: float) -> Round:
    """A hyperboloid of one sheet: radius `waist` at z = 0, `rim` at its flat ends."""
    slope = (rim * rim - waist * waist) / (half_height * half_height)
    return Round(waist * waist, 0.0, slope, -half_height, half_height)


def dot(u: Vector, v: Vector) -> float | np.ndarray:
    """Scalar product of two vectors, part by part (never through BLAS)."""
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def minus(u: Vector, v: Vector) -> Vector:
    """Difference of two vectors, part by part."""
    return u[0] - v[0], u[1] - v[1], u[2] - v[2]


def cross(u: Vector, v: Vector) -> Vector:
    """Vector product."""
    return (
        u[1] * v[2] - u[2] * v[1],
        u[2] * v[0] - u[0] * v[2],
        u[0] * v[1] - u[1] * v[0],
    )


def unit(v: Vector) -> Vector:
    """A vector of three numbers divided by its length."""
    length = math.sqrt(dot(v, v))
    return (v[0] / length, v[1] / length, v[2] / length)


def into(rotation: Rotation, v: Vector) -> Vector:
    """Coordinates of `v` in the frame whose axes are the rotation's rows."""
    return tuple(dot(row, v) for row in rotation)


def out_of(rotation: Rotation, v: Vector) -> Vector:
    """Inverse of `into`."""
    return tuple(
        rotation[0][k] * v[0] + rotation[1][k] * v[1] + rotation[2][k] * v[2]
        for k in range(3)
    )


def combine(first: Rotation, second: Rotation) -> Rotation:
    """The rotation that does `into(first, into(second, v))` at once."""
    return tuple(out_of(second, axis) for axis in first)
