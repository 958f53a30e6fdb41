# SPDX-License-Identifier: Apache-2.0
"""Attacks that know nothing: random points, which every other attack must beat."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import threat
from mtr_tf.attacks.pgd import Best


@dataclasses.dataclass(frozen=True)
class Noise(base.Attack):
    """A uniform point of the ball, clipped to the box; the best of `draws`.

    Attributes:
      epsilon: As for PGD.
      norm: "linf" or "l2".
      draws: Number of points to score; the one with the highest score is returned (of
        equal ones the earlier). If all scores are NaN, the clean image is returned. For
        "linf", draw n of a seed is the start of PGD's run n.

    Raises:
      InputError: A setting is out of range; or, when called, as for PGD.
    """

    epsilon: float | tf.Tensor
    norm: str = "linf"
    draws: int = 1

    def __post_init__(self):
        threat.check(self.norm, self.epsilon)
        checks.check_count("draws", self.draws)

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image."""
        return self.draws

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        ball = threat.ball(self.norm, self.epsilon)
        project = ball.projection(x)
        centre = tf.cast(x, threat.compute_dtype(x))
        run_objective = base.begin(objective, centre, centre)

        def step(draw, best):
            points = project(self._points(ball, x, keys, draw))
            return best.offer(
                points, base.score(run_objective, points, tf.constant(1.0))
            )

        best = base.loop(0, self.draws, step, Best.clean(centre, objective))
        return ball.rounded(best.points, x)

    def _points(self, ball, x, keys, draw) -> tf.Tensor:
        """A point of the ball around each image; may leave the box."""
        return threat.random_point(ball, x, keys, draw)


@dataclasses.dataclass(frozen=True)
class Corner(Noise):
    """A random point on the ball's surface, clipped to the box; the best of its draws.

    For "linf" each value moves by epsilon up or down, with equal chance: a corner of
    the cube. For "l2" it is a point of the sphere, of uniform direction.

    Attributes:
      epsilon, norm, draws: As for Noise.

    Raises:
      InputError: As for Noise.
    """

    def _points(self, ball, x, keys, draw) -> tf.Tensor:
        """A point of the ball's surface: the signs or the direction of a Gaussian."""
        dtype = threat.compute_dtype(x)
        noise = threat.random_images(threat.normal, x, keys, draw)
        return tf.cast(x, dtype) + tf.cast(self.epsilon, dtype) * ball.steepest(noise)
