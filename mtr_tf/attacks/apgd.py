# SPDX-License-Identifier: Apache-2.0
"""Auto-PGD: step sizes that follow the score (Croce and Hein, AutoAttack, 2020)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import checks
from mtr_tf.attacks import threat
from mtr_tf.attacks.pgd import Best
from mtr_tf.errors import InputError

_MOMENTUM = 0.75  # The share of the new step in a move; the rest repeats the last move.
_RISES = 0.75  # rho: the share of steps that must raise the score.


@dataclasses.dataclass(frozen=True)
class APGD(base.Attack):
    """PGD with momentum that halves its own step size; no step size to choose.

    From x_0 = x_-1, a start in the ball, with eta = 2 epsilon,

        z = project(x_k + eta * steepest(gradient_k))
        x_{k+1} = project(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1})),

    a = 1 in the first step and 0.75 in all others. At checkpoints, each image for
    itself, eta is halved and x_k becomes the best point so far (with its gradient and
    score; x_{k-1} stays) where, since the last checkpoint,

    - fewer than 75 % of the steps led to a point of higher score than the one they left
    - or neither eta nor the best score has changed.

    Checkpoints are the steps ceil(p_j N) of N with p_0 = 0, p_1 = 0.22 and
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); the check is made when the point
    after that many steps has been scored, before the next step.

    This is the paper's text. AutoAttack's code differs in details: it also halves at
    exactly 75 %, rounds the distances of checkpoints (0.22 N, less 0.03 N each time, at
    least 0.06 N) down to whole steps, exempts the first checkpoint from the second
    condition, and after a jump to the best point counts the next step against the score
    of the point that was left.

    Attributes:
      epsilon: As for PGD.
      steps: Number of steps, with one gradient each. One more forward pass per stage
        scores its last point.
      norm: "linf" or "l2".
      restarts: Number of runs, each from its own start.
      random_start: Whether to start at a uniform point of the (first) ball, for "linf"
        the one that PGD starts at from the same seed; else at the image.
      radii: Stages (multiple of epsilon, share of the steps), the last multiple 1.
        Each is a run of its own, with progress from 0 to 1, from the best point of the
        stage before, projected onto its ball. SEA has ((2, 0.3), (1.5, 0.3), (1, 0.4)).

    The returned point has the highest score of all points of all last stages (including
    their starts and last points), which are inside the ball of radius epsilon. Of equal
    points the earlier one is returned; a NaN score never wins. As in PGD, if no
    gradient moved an image, the clean image is returned unless the start scores higher.

    Raises:
      InputError: A setting is out of range; or, when called, as for PGD.
    """

    epsilon: float | tf.Tensor
    steps: int
    norm: str = "linf"
    restarts: int = 1
    random_start: bool = True
    radii: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def __post_init__(self):
        threat.check(self.norm, self.epsilon)
        checks.check_count("steps", self.steps)
        checks.check_count("restarts", self.restarts)
        checks.check_flag("random_start", self.random_start)
        checks.check_restarts(self.restarts, self.random_start)
        object.__setattr__(self, "radii", _stages(self.radii))
        if min(np.diff(self._ends())) < 1:
            raise InputError(
                f"Each of the {len(self.radii)} radii needs at least one step, but "
                f"there are {self.steps} steps in all; give more steps."
            )

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return self.restarts * (self.steps + len(self.radii))

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        centre = tf.cast(x, threat.compute_dtype(x))
        multiples = tf.constant([radius for radius, _ in self.radii], tf.float64)
        ends = tf.constant(self._ends())
        # Not tf.cast, which makes a float32 of a Python number first.
        epsilon = tf.convert_to_tensor(self.epsilon, tf.float64)

        def stage_ball(stage):
            return threat.ball(self.norm, epsilon * tf.gather(multiples, stage))

        def run(restart, best):
            start = centre
            if self.random_start:
                first_ball = stage_ball(0)
                start = threat.random_point(first_ball, x, keys, restart)
                start = first_ball.projection(x)(start)
            run_objective = base.begin(objective, start, centre)

            def stage(number, run_best):
                span = tf.gather(ends, number), tf.gather(ends, number + 1)
                ball = stage_ball(number)
                return self._stage(run_objective, ball, x, run_best.points, span)

            run_best = base.repeat(len(self.radii), stage, Best.none(start))
            return best.offer(*run_best)

        best = base.repeat(self.restarts, run, Best.clean(centre, objective))
        return threat.ball(self.norm, self.epsilon).rounded(best.points, x)

    def _ends(self) -> list[int]:
        """The numbers of steps before each stage and after the last one."""
        shares = [0.0] + [share for _, share in self.radii]
        return [round(end * self.steps) for end in np.cumsum(shares)]

    def _rises_needed(self) -> np.ndarray:
        """The rises that each step's check needs, [steps]; -1 where there is none."""
        rises = np.full(self.steps, -1.0)
        ends = self._ends()
        for first, last in itertools.pairwise(ends):
            marks = checkpoints(last - first)
            rises[first] = 0
            for previous, mark in itertools.pairwise(marks):
                rises[first + mark] = _RISES * (mark - previous)
        return rises

    def _stage(self, objective, ball, x, start, span) -> Best:
        """Runs the steps numbered span[0] to span[1] - 1; returns their best points."""
        first, last = span
        project = ball.projection(x)
        start = project(start)
        rises_needed = tf.constant(self._rises_needed(), start.dtype)

        def step(number, state):
            index = tf.cast(number - first, tf.float32)
            progress = index / tf.cast(last - first, tf.float32)
            share = tf.where(number > first, _MOMENTUM, 1.0)

            def move(slope):
                next_state = state._replace(slope=slope).moved(ball, project, share)
                return next_state.point - state.point

            slope, scores = base.gradient(objective, state.point, progress, move)
            scored_state = state.seen(slope, scores)
            least_rises = rises_needed[number]
            scored_state = tf.cond(
                least_rises >= 0,
                lambda: scored_state.checked(least_rises),
                lambda: scored_state,
            )
            return scored_state.moved(ball, project, share)

        state = _State.at(start, 2 * tf.cast(ball.epsilon, start.dtype))
        state = base.loop(first, last, step, state)
        centre = tf.cast(x, start.dtype)
        unmoved = tf.equal(state.point, start) & tf.equal(state.slope, 0)
        unmoved = tf.reduce_all(unmoved, threat.image_axes(start))
        return state.best.offer_last(state.point, unmoved, centre, objective)


class _State(NamedTuple):
    """The state of each image's run: numbers are [batch], all else [batch, ...]."""

    point: tf.Tensor
    previous: tf.Tensor  # The point before.
    slope: tf.Tensor  # The gradient at the point, and its score.
    score: tf.Tensor
    best: Best
    best_slope: tf.Tensor
    step_size: tf.Tensor
    rises: tf.Tensor  # Steps since the last checkpoint that raised the score.
    halved: tf.Tensor  # At the last checkpoint: whether the step size was halved,
    record: tf.Tensor  # and the best score.

    @classmethod
    def at(cls, start: tf.Tensor, step_size: tf.Tensor) -> _State:
        """A run that has not scored its start yet."""
        best = Best.none(start)
        zero_images, zeros = tf.zeros_like(start), tf.zeros_like(best.scores)
        return cls(
            point=start,
            previous=start,
            slope=zero_images,
            score=zeros + np.inf,  # Above all: the start is no rise.
            best=best,
            best_slope=zero_images,
            step_size=zeros + step_size,
            rises=zeros,
            halved=tf.zeros_like(zeros, tf.bool),
            record=zeros + np.nan,  # NaN equals nothing: the start is no standstill.
        )

    def seen(self, slope: tf.Tensor, score: tf.Tensor) -> _State:
        """Returns the state with the gradients and the scores of the points."""
        better = score > self.best.scores
        return self._replace(
            slope=slope,
            score=score,
            best=self.best.take(better, self.point, score),
            best_slope=threat.choose(better, slope, self.best_slope),
            rises=self.rises + tf.cast(score > self.score, self.rises.dtype),
        )

    def checked(self, least_rises: tf.Tensor) -> _State:
        """Returns the state after a checkpoint that needs `least_rises`."""
        idle = ~self.halved & tf.equal(self.best.scores, self.record)
        halved = (self.rises < least_rises) | idle
        return self._replace(
            point=threat.choose(halved, self.best.points, self.point),
            slope=threat.choose(halved, self.best_slope, self.slope),
            score=tf.where(halved, self.best.scores, self.score),
            step_size=tf.where(halved, self.step_size / 2, self.step_size),
            rises=tf.zeros_like(self.rises),
            halved=halved,
            record=self.best.scores,
        )

    def moved(self, ball, project: Callable, share: tf.Tensor) -> _State:
        """Returns the state after a step: `share` new move, the rest the last move."""
        step_size = threat.per_image(self.step_size, self.point)
        share = tf.cast(share, self.point.dtype)
        aim = project(self.point + step_size * ball.steepest(self.slope))
        new_move, last_move = aim - self.point, self.point - self.previous
        point = project(self.point + share * new_move + (1 - share) * last_move)
        return self._replace(point=point, previous=self.point)


def checkpoints(steps: int) -> list[int]:
    """Returns the numbers of steps, from 0 to below `steps`, after which APGD checks.

    ceil(p_j steps) of the paper, in whole hundredths: 0.22 + 0.19 is 0.41.
    """
    marks, p, gap = [0], 22, 22
    while p * steps <= 100 * (steps - 1):
        marks.append(-(-p * steps // 100))  # Rounded up.
        gap = max(gap - 3, 6)
        p += gap
    return sorted(set(marks))


def _stages(radii: Any) -> tuple[tuple[float, float], ...]:
    """Returns the radii as tuples; raises InputError where they are no schedule."""
    try:
        stages = tuple((float(radius), float(share)) for radius, share in radii)
    except (TypeError, ValueError):
        stages = ()
    valid = (
        stages
        and all(r > 0 and math.isfinite(r) and s > 0 for r, s in stages)
        and stages[-1][0] == 1
        and math.isclose(sum(share for _, share in stages), 1, abs_tol=1e-6)
    )
    if not valid:
        raise InputError(
            "radii must be a tuple of pairs (multiple of epsilon, share of the "
            "steps), all above 0, where the last multiple is 1 and the shares add up "
            f"to 1; got {radii!r}."
        )
    return stages
