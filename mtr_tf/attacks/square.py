# SPDX-License-Identifier: Apache-2.0
"""Square Attack (Andriushchenko et al., 2020): random search by windows."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import threat
from mtr_tf.attacks.pgd import Best
from mtr_tf.errors import InputError

# The queries, out of 10 000, after which the window's share of the image is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_GRID = 5  # Squares of the l2 start along the image's shorter side.


@dataclasses.dataclass(frozen=True)
class Square(base.Attack):
    """Random windows, each kept if it raises the score; needs no gradients.

    Every query changes a square window of an image's best point so far, at a uniformly
    random position. Its side is sqrt(share * height * width), rounded, at least 1 pixel
    and at most the image's shorter side. The share of the pixels is `p`, halved after
    10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10 000 queries, in proportion
    to `queries`.

    "linf" starts from x + epsilon * (a random sign per column and channel), vertical
    stripes, and sets the window to x + epsilon * (a random sign per channel). A window
    that changes nothing still counts as a query.

    "l2" starts from a grid of squares, each a pair of pyramids of opposite signs,
    upright or turned, with a random sign per channel; here the grid covers the whole
    image; in the paper it leaves a margin. A query erases the difference to x in two
    windows and writes a pair of pyramids, added to the direction of what was there,
    into the first: per channel c with the norm

        sqrt(max(epsilon^2 - |d|^2, 0) / channels + |d_c in both windows|^2),

    d being the difference so far. The whole is then given length epsilon. Sides are
    odd and at least 3 pixels, image permitting.

    Attributes:
      epsilon: As for PGD.
      queries: Evaluations of the objective in a run, including that of the start.
      norm: "linf" or "l2".
      p: The first windows' share of the pixels, in (0, 1]; 0.8 is AutoAttack's choice,
        0.05 (linf) and 0.1 (l2) the paper's on ImageNet.
      restarts: Number of runs, each from its own start.

    The returned point is the one with the highest score of all that were evaluated (of
    equal ones the earlier), or the clean image if all scores are NaN.

    Raises:
      InputError: A setting is out of range; or, when called, as for PGD, or images are
        not [batch, height, width, channels].
    """

    epsilon: float | tf.Tensor
    queries: int = 1000
    norm: str = "linf"
    p: float = 0.8
    restarts: int = 1

    def __post_init__(self):
        threat.check(self.norm, self.epsilon)
        checks.check_count("queries", self.queries, checks.MOST_QUERIES)
        checks.check_count("restarts", self.restarts)
        checks.check_number("p", self.p)
        if not 0 < self.p <= 1:
            raise InputError(
                "p must be a share of the pixels, above 0 and at most 1; got "
                f"{self.p:g}."
            )

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image."""
        return self.restarts * self.queries

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        if x.shape.rank != 4:
            raise InputError(
                "Square needs images [batch, height, width, channels]; got shape "
                f"{x.shape}."
            )
        ball = threat.ball(self.norm, self.epsilon)
        moves = {"linf": _Linf, "l2": _L2}[self.norm](ball, x)
        shares = tf.constant(_shares(self.p, self.queries), moves.centre.dtype)
        progress = tf.constant(1.0)  # Always: scores of one run must compare.

        def run(restart, best):
            run_keys = tf.map_fn(lambda key: threat.fold_in(key, restart), keys)
            start = moves.start(run_keys)
            run_objective = base.begin(objective, start, moves.centre)
            run_best = Best.none(moves.centre)
            run_best = run_best.offer(start, base.score(run_objective, start, progress))
            draws = _draws(x, run_keys, self.queries)

            def query(number, run_best):
                draw = _Draw.of(draws[:, number])
                point = moves.change(run_best.points, shares[number], draw)
                return run_best.offer(point, base.score(run_objective, point, progress))

            return best.offer(*base.loop(1, self.queries, query, run_best))

        best = Best.clean(moves.centre, objective)
        best = base.loop(0, self.restarts, run, best)
        return ball.rounded(best.points, x)


class _Draw(NamedTuple):
    """The random numbers of one query, each uniform in [0, 1) or of two values."""

    place: tf.Tensor  # The window's, by (height, width): [batch, 2].
    second_place: tf.Tensor  # The second window's, for l2.
    turned: tf.Tensor  # Whether the pyramids lie on their side, bool [batch].
    signs: tf.Tensor  # -1 or 1, [batch, 1, 1, channels].

    @classmethod
    def of(cls, numbers: tf.Tensor) -> _Draw:
        """Returns the draw made of uniform numbers [batch, 5 + channels]."""
        return cls(
            place=numbers[:, :2],
            second_place=numbers[:, 2:4],
            turned=numbers[:, 4] < 0.5,
            signs=_signs(numbers[:, None, None, 5:]),
        )


class _Linf:
    """How the attack starts and moves in the cube."""

    def __init__(self, ball, x: tf.Tensor):
        self._x, self._project = x, ball.projection(x)
        self.centre = tf.cast(x, threat.compute_dtype(x))
        self._epsilon = tf.cast(ball.epsilon, self.centre.dtype)

    def start(self, keys: tf.Tensor) -> tf.Tensor:
        """Returns the stripes."""
        row = threat.random_images(threat.uniform, self._x[:, :1], keys, 0)
        return self._project(self.centre + self._epsilon * _signs(row))

    def change(self, points: tf.Tensor, share: tf.Tensor, draw: _Draw) -> tf.Tensor:
        """Returns the points with their windows set to a corner's values."""
        side = _side(share, points)
        inside = _window_mask(
            *_coordinates(points, side, draw.place), side, points.dtype
        )
        corner = self._project(self.centre + self._epsilon * draw.signs)
        return inside * corner + (1 - inside) * points


class _L2:
    """How the attack starts and moves in the Euclidean ball."""

    def __init__(self, ball, x: tf.Tensor):
        self._x, self._ball, self._project = x, ball, ball.projection(x)
        self.centre = tf.cast(x, threat.compute_dtype(x))
        self._epsilon = tf.cast(ball.epsilon, self.centre.dtype)

    def start(self, keys: tf.Tensor) -> tf.Tensor:
        """Returns the grid of pyramids."""
        height, width = tf.shape(self._x)[1], tf.shape(self._x)[2]
        side = tf.maximum(tf.minimum(height, width) // _GRID, 1)
        rows, columns = tf.range(height) % side, tf.range(width) % side
        cells = self._x[:, ::side, ::side]
        signs = _signs(threat.random_images(threat.uniform, cells, keys, 0))
        signs = self._spread(signs, side)
        turned = threat.random_images(threat.uniform, cells[..., :1], keys, 1) < 0.5
        window = _pyramids(side, signs.dtype)
        rows, columns = rows[:, None], columns[None]
        upright = _look_up(window, rows, columns)
        lying = _look_up(window, columns, rows)
        turned = self._spread(tf.cast(turned, signs.dtype), side)
        shape = turned * lying + (1 - turned) * upright
        return self._rescale(shape * signs)

    def change(self, points: tf.Tensor, share: tf.Tensor, draw: _Draw) -> tf.Tensor:
        """Returns the points with pyramids added to their offset in the first window.

        There, each channel gets the norm that it had in both windows, and its share of
        what was left of epsilon; in the rest of the second window the offset becomes 0.
        """
        side = _side(share, points, odd=True)
        rows, columns = _coordinates(points, side, draw.place)
        first = _window_mask(rows, columns, side, points.dtype)
        second = _window_mask(
            *_coordinates(points, side, draw.second_place), side, points.dtype
        )
        either = tf.maximum(first, second)
        offset = points - self.centre
        spare = self._epsilon**2 - tf.reduce_sum(offset**2, [1, 2, 3], keepdims=True)
        spare = tf.maximum(spare, 0) / tf.cast(tf.shape(points)[3], points.dtype)
        budget = tf.sqrt(spare + _channel_norms(either * offset) ** 2)
        turned = draw.turned[:, None, None]
        shape = first * _look_up(
            _pyramids(side, points.dtype),
            tf.where(turned, columns, rows),
            tf.where(turned, rows, columns),
        )
        direction = shape * draw.signs + _unit(first * offset)
        return self._rescale((1 - either) * offset + budget * _unit(direction))

    def _rescale(self, offset: tf.Tensor) -> tf.Tensor:
        offset = tf.ensure_shape(offset, self._x.shape)
        return self._project(self.centre + self._epsilon * self._ball.steepest(offset))

    def _spread(self, cells: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
        """Returns each cell's value for all of its pixels, cut to the image."""
        pixels = tf.repeat(tf.repeat(cells, side, axis=1), side, axis=2)
        return pixels[:, : tf.shape(self._x)[1], : tf.shape(self._x)[2]]


def _shares(p: float, queries: int) -> np.ndarray:
    """The window's share of the image for every query."""
    positions = np.arange(queries) * 10_000 // queries
    return p / 2.0 ** np.sum(positions[:, None] > np.array(_HALVINGS), axis=1)


def _draws(x: tf.Tensor, keys: tf.Tensor, queries: int) -> tf.Tensor:
    """Returns uniform numbers [batch, queries, 5 + channels], by image."""
    dtype = threat.compute_dtype(x)
    return tf.map_fn(
        lambda key: threat.uniform(
            [queries, 5 + tf.shape(x)[3]], threat.fold_in(key, 2), dtype
        ),
        keys,
        fn_output_signature=tf.TensorSpec([queries, None], dtype),
    )


def _signs(uniform: tf.Tensor) -> tf.Tensor:
    """Returns -1 or 1 with equal chance, from numbers uniform in [0, 1)."""
    return 2 * tf.cast(uniform < 0.5, uniform.dtype) - 1


def _side(share: tf.Tensor, points: tf.Tensor, odd: bool = False) -> tf.Tensor:
    """Returns the side of a window with that share of the pixels."""
    size = tf.shape(points)[1:3]
    pixels = tf.cast(tf.reduce_prod(size), share.dtype)
    side = tf.cast(tf.round(tf.sqrt(share * pixels)), tf.int32)
    side = tf.maximum(side // 2 * 2 + 1, 3) if odd else tf.maximum(side, 1)
    return tf.minimum(side, tf.reduce_min(size))


def _coordinates(
    points: tf.Tensor, side: tf.Tensor, place: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the number of each row and column within its image's window.

    Shapes are [batch, height, 1] and [batch, 1, width]. Outside the window numbers are
    negative, or `side` and more. All places inside the image are equally likely.
    """
    numbers = []
    for axis in (0, 1):
        size = tf.shape(points)[1 + axis]
        choices = tf.cast(size - side + 1, place.dtype)
        start = tf.cast(tf.floor(place[:, axis] * choices), tf.int32)
        start = tf.minimum(start, size - side)  # Rounding may carry it one too far.
        numbers.append(tf.range(size) - start[:, None])
    return numbers[0][:, :, None], numbers[1][:, None, :]


def _window_mask(
    rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Returns 1 for the window's pixels, 0 for others, [batch, height, width, 1]."""
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return tf.cast(inside, dtype)[..., None]


def _pyramids(side: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns a window's pair of pyramids, [side, side] of norm 1.

    The upper side // 2 rows hold one, the others its opposite, of the same norm. At
    distance d from its middle (by rows or by columns, whichever is more) a pyramid has
    the height sum_{m = d}^{side // 2} 1 / (m + 1)^2.
    """
    half = side // 2
    rows, columns = tf.range(side)[:, None], tf.range(side)[None]
    upper = rows < half
    middle = tf.where(upper, half // 2, half + (side - half) // 2)
    distance = tf.maximum(tf.abs(rows - middle), tf.abs(columns - half))
    parts = 1 / tf.cast(tf.range(1, half + 2), tf.float64) ** 2
    height = tf.gather(tf.cumsum(parts, reverse=True), distance)
    upper = tf.cast(upper, tf.float64)
    first, second = upper * height, (1 - upper) * height
    pair = tf.math.divide_no_nan(first, tf.norm(first)) - second / tf.norm(second)
    return tf.cast(pair / tf.norm(pair), dtype)


def _look_up(window: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the window's values at these places, [..., 1]; its edge's outside."""
    last = tf.shape(window)[0] - 1
    rows, columns = (tf.clip_by_value(n, 0, last) for n in (rows, columns))
    return tf.gather(tf.reshape(window, [-1]), rows * (last + 1) + columns)[..., None]


def _channel_norms(offset: tf.Tensor) -> tf.Tensor:
    """Returns each channel's l2 norm, [batch, 1, 1, channels]."""
    return tf.sqrt(tf.reduce_sum(tf.square(offset), [1, 2], keepdims=True))


def _unit(offset: tf.Tensor) -> tf.Tensor:
    """Returns each channel divided by its l2 norm; zero where that is zero."""
    return tf.math.divide_no_nan(offset, _channel_norms(offset))
