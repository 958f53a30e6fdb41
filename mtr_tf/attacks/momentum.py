# SPDX-License-Identifier: Apache-2.0
"""Momentum iterative method, MIM (Dong et al., Boosting Adversarial Attacks, 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import calling
from mtr_tf.attacks import pgd
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class MIM(pgd.PGD):
    """PGD along a decaying sum of all gradients so far.

        g_0 = 0,  g_{k+1} = decay * g_k + gradient_k / |gradient_k|_1,
        x_{k+1} = project(x_k + step_size * steepest(g_{k+1}))

    with the l1 norm of each image's own gradient (zero stays zero), as Dong et al. have
    it; their mu is `decay`, by default theirs. Some libraries sum signs of gradients or
    divide by a norm of the whole batch: those are other attacks.

    Attributes:
      decay: What is left of the sum after a step, at least 0; at 0 this is PGD.
      normalize: Whether each gradient is divided by its norm. `normalize=False,
        decay=0.5` is the rule of the released code of Mao et al. (2020).
      epsilon, step_size, steps, norm, random_start, restarts, keep: As for PGD.

    Raises:
      InputError: As for PGD.
    """

    decay: float = 1.0
    normalize: bool = True

    def __post_init__(self):
        super().__post_init__()
        threat.check_number("decay", self.decay)
        if self.decay < 0:
            raise InputError(f"decay must be at least 0, got {self.decay:g}.")
        if not isinstance(self.normalize, bool):
            raise InputError(f"normalize is True or False, got {self.normalize!r}.")

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        judged = self.keep == "best" or self.restarts > 1
        return self.restarts * (self.steps + judged)

    def search(
        self, objective: calling.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `calling.Attack`."""
        ball = threat.ball(self.norm, self.epsilon)
        project = ball.projection(x)
        centre = tf.cast(x, threat.compute_dtype(x))
        step_size = tf.cast(self.step_size, centre.dtype)
        judged = self.keep == "best" or self.restarts > 1

        def run(restart, point, best):
            start = centre
            if self.random_start:
                start = project(threat.random_start(ball, x, keys, restart))
            raised = calling.begin(objective, start)

            def step(number, point, total, best):
                progress = tf.cast(number, tf.float32) / self.steps
                slope, scores = calling.gradient(raised, point, progress)
                if self.keep == "best":
                    best = best.offer(point, scores)
                total = self._add(total, slope)
                point = project(point + step_size * ball.steepest(total))
                return number + 1, point, total, best

            _, point, _, best = tf.while_loop(
                lambda number, *_: number < self.steps,
                step,
                (0, start, tf.zeros_like(start), best),
            )
            if judged:
                best = self._judge(raised, centre, start, point, best)
            return restart + 1, point, best

        unknown = tf.fill(tf.shape(x)[:1], tf.constant(-float("inf"), centre.dtype))
        state = (0, centre, pgd.Best(centre, tf.ensure_shape(unknown, x.shape[:1])))
        if self.restarts == 1:
            _, point, best = run(*state)
        else:
            _, point, best = tf.while_loop(
                lambda restart, *_: restart < self.restarts, run, state
            )
        return ball.rounded(best.points if judged else point, x)

    def _add(self, total: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        """Returns the next sum of gradients; always finite."""
        highest = slope.dtype.max
        if self.normalize:
            axes = list(range(1, slope.shape.rank))
            length = tf.reduce_sum(tf.abs(slope), axes, keepdims=True)
            # Zero gradients stay zero, sums beyond the type's range stay numbers.
            tiny = np.finfo(slope.dtype.name).tiny
            slope /= tf.clip_by_value(length, tiny, highest)
        total = self.decay * total + slope
        return tf.raw_ops.ClipByValue(
            t=total,
            clip_value_min=tf.constant(-highest, total.dtype),
            clip_value_max=tf.constant(highest, total.dtype),
        )
