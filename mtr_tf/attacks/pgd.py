# SPDX-License-Identifier: Apache-2.0
"""Projected gradient ascent (Madry et al. 2018) and FGSM (Goodfellow et al. 2015)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import sparing
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError


class Best(NamedTuple):
    """The best point of each image so far: points [batch, ...], scores [batch]."""

    points: tf.Tensor
    scores: tf.Tensor

    @classmethod
    def none(cls, points: tf.Tensor, score: float = -math.inf) -> Best:
        """Returns `points` as the best; any other point above `score` replaces them."""
        scores = tf.fill(tf.shape(points)[:1], tf.constant(score, points.dtype))
        return cls(points, tf.ensure_shape(scores, points.shape[:1]))

    @classmethod
    def clean(cls, images: tf.Tensor, objective: base.Objective) -> Best:
        """Returns the images themselves, which any point with a score replaces.

        If the objective spares tasks, only a point that spares them does.
        """
        spares = getattr(objective, "spares", False)
        return cls.none(images, -sparing.FAR if spares else -math.inf)

    def offer(self, points: tf.Tensor, scores: tf.Tensor) -> Best:
        """Returns the better per image; the earlier one where equal or NaN."""
        return self.take(scores > self.scores, points, scores)

    def offer_last(
        self,
        points: tf.Tensor,
        unmoved: tf.Tensor,
        images: tf.Tensor,
        objective: base.Objective,
    ) -> Best:
        """Returns the best including the last points of runs, which have no score yet.

        Where a run has not moved (`unmoved`, [batch]), for lack of a gradient, the
        score of its point is known. There the image itself is scored instead, and wins
        a tie: without a gradient, nothing shall move.
        """
        points = threat.choose(unmoved, images, points)
        scores = base.score(objective, points, tf.constant(1.0))
        better = (scores > self.scores) | (unmoved & (scores >= self.scores))
        return self.take(better, points, scores)

    def take(self, mask: tf.Tensor, points: tf.Tensor, scores: tf.Tensor) -> Best:
        """Returns the best with these points and scores where `mask` [batch] holds."""
        return Best(
            threat.choose(mask, points, self.points),
            tf.where(mask, scores, self.scores),
        )


def exactly(number: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns a number as a tensor; tf.cast alone would make it float32 first."""
    return tf.cast(tf.convert_to_tensor(number, tf.float64), dtype)


@dataclasses.dataclass(frozen=True)
class PGD(base.Attack):
    """Steps of fixed size along the steepest direction, each projected back.

    `PGD(...)(objective, x, seed)` returns images of x's shape and dtype in ball and box
    that raise `objective`: any callable `f(x, progress)` -> `[batch]`, or -> (ascend,
    score), both `[batch]`; `attacks.simple(f)` makes one from `f(x)`. The attack
    follows the gradient of `ascend`; `score` decides which point is best. `progress` is
    the share of steps done: 0 at first, and 1 when only the score of the last point is
    needed.

    Attributes:
      epsilon: Radius in pixel units of [0, 1]; for "l2" the norm of the whole image's
        difference. Zero is allowed. Epsilon and the step size may be float64 tensors,
        and steps an int32 tensor; these are not checked, and one graph then serves all
        values.
      step_size: Length of a step, in the same unit.
      steps: Number of steps.
      norm: "linf" or "l2".
      random_start: Whether to start at a random point of the ball (clipped to the box),
        which depends only on each image's seed and the restart; otherwise at the image.
        The point is uniform for "linf", and has uniform direction and length for "l2".
      restarts: Number of runs, each from its own start.
      keep: "best" returns the point with the highest score among all points of all runs
        (including starts and last points; this costs one more forward pass), so more
        steps or restarts never do worse. Of equal points the earlier one is returned.
        If an image's last point is its start, because no gradient moved it, the clean
        image is scored instead of that point, and is returned unless another scores
        higher. "last" returns the last point of the run whose last point scores
        highest.

    Raises:
      InputError: A setting is out of range; or, when called, the images, the seed or
        the objective's results have the wrong type or shape.
    """

    epsilon: float | tf.Tensor
    step_size: float | tf.Tensor
    steps: int
    norm: str = "linf"
    random_start: bool = True
    restarts: int = 1
    keep: str = "best"

    def __post_init__(self):
        threat.check(self.norm, self.epsilon)
        if not tf.is_tensor(self.step_size):
            self._check_step_size()
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not tf.is_tensor(value):
                checks.check_count(name, value)
        checks.check_flag("random_start", self.random_start)
        checks.check_restarts(self.restarts, self.random_start)
        if self.keep not in ("best", "last"):
            raise InputError(f"keep must be 'best' or 'last'; got {self.keep!r}.")

    def _check_step_size(self):
        checks.check_number("step_size", self.step_size)
        if self.step_size <= 0:
            raise InputError(f"step_size must be above 0; got {self.step_size:g}.")
        if self.norm == "linf" and self.step_size > 1:
            raise InputError(
                "step_size must be in units of [0, 1] (2/255, not 2); got "
                f"{self.step_size:g}."
            )
        if self.step_size > threat.LARGEST_L2:  # As epsilon: squares stay numbers.
            raise InputError(
                "step_size must be an l2 norm for images in [0, 1], up to 1e6; got "
                f"{self.step_size:g}."
            )

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return self.restarts * (self.steps + self._scores_last)

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        ball = threat.ball(self.norm, self.epsilon)
        project = ball.projection(x)
        centre = tf.cast(x, threat.compute_dtype(x))
        step_size = exactly(self.step_size, centre.dtype)
        scores_last = self._scores_last

        def step(run_objective, number, state):
            point, best, memory = state
            progress = tf.cast(number, tf.float32) / tf.cast(self.steps, tf.float32)

            def advance(slope):
                next_memory, direction = self._remember(memory, slope)
                return next_memory, project(
                    point + step_size * ball.steepest(direction)
                )

            slope, scores = base.gradient(
                run_objective, point, progress, lambda slope: advance(slope)[1] - point
            )
            if self.keep == "best":
                best = best.offer(point, scores)
            memory, point = advance(slope)
            return point, best, memory

        def run(restart, state):
            _, best = state
            start = centre
            if self.random_start:
                start = project(threat.random_start(ball, x, keys, restart))
            run_objective = base.begin(objective, start, centre)
            state = (start, best, self._memory(start))
            point, best, _ = base.loop(
                0, self.steps, functools.partial(step, run_objective), state
            )
            if scores_last:
                best = self._offer_last(run_objective, centre, start, point, best)
            return point, best

        state = (centre, Best.clean(centre, objective))
        point, best = base.repeat(self.restarts, run, state)
        return ball.rounded(best.points if scores_last else point, x)

    @property
    def _scores_last(self) -> bool:
        """Whether the last point of a run is scored."""
        return self.keep == "best" or self.restarts > 1

    def _memory(self, start: tf.Tensor) -> Any:
        """What a run remembers of its gradients at its start; here nothing."""
        del start
        return ()

    def _remember(self, memory: Any, slope: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Returns the memory after a gradient, and what the next step follows."""
        return memory, slope

    def _offer_last(self, objective, centre, start, point, best) -> Best:
        """Offers the last point of a run."""
        if self.keep == "last":
            return best.offer(point, base.score(objective, point, tf.constant(1.0)))
        unmoved = tf.reduce_all(tf.equal(point, start), threat.image_axes(point))
        return best.offer_last(point, unmoved, centre, objective)


@dataclasses.dataclass(frozen=True)
class FGSM(base.Attack):
    """One step of length epsilon from the image: the fast gradient (sign) method.

    Attributes:
      epsilon: As for PGD.
      norm: "linf" or "l2".
    """

    epsilon: float | tf.Tensor
    norm: str = "linf"

    def __post_init__(self):
        threat.check(self.norm, self.epsilon)

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image: one."""
        return 1

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        del keys  # Nothing is random.
        ball = threat.ball(self.norm, self.epsilon)
        point = tf.cast(x, threat.compute_dtype(x))
        objective = base.begin(objective, point, point)
        epsilon, project = exactly(self.epsilon, point.dtype), ball.projection(x)

        def next_point(slope):
            return project(point + epsilon * ball.steepest(slope))

        slope, _ = base.gradient(
            objective, point, tf.constant(0.0), lambda slope: next_point(slope) - point
        )
        return ball.rounded(next_point(slope), x)
