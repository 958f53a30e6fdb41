# SPDX-License-Identifier: Apache-2.0
"""Momentum iterative method, MIM (Dong et al., Boosting Adversarial Attacks, 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import checks
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

    Like Dong et al.'s, a single run begins at the image. Several runs need
    `random_start=True`: from the image they are all the same run.

    Attributes:
      decay: The share of the sum that is kept after a step, at least 0; with 0 this is
        PGD.
      normalize: Whether each gradient is divided by its norm. `normalize=False,
        decay=0.5` is the rule of the released code of Mao et al. (2020), whose runs
        begin at a random point: there `random_start=True`.
      random_start: As for PGD, but False by default.
      epsilon, step_size, steps, norm, restarts, keep: As for PGD.

    Raises:
      InputError: As for PGD.
    """

    random_start: bool = False
    decay: float = 1.0
    normalize: bool = True

    def __post_init__(self):
        super().__post_init__()
        checks.check_number("decay", self.decay)
        if self.decay < 0:
            raise InputError(f"decay must be at least 0; got {self.decay:g}.")
        checks.check_flag("normalize", self.normalize)

    def _memory(self, start: tf.Tensor) -> tf.Tensor:
        """The sum of gradients at first: zero."""
        return tf.zeros_like(start)

    def _remember(
        self, memory: tf.Tensor, slope: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the next sum of gradients, always finite, as memory and direction."""
        highest = slope.dtype.max
        if self.normalize:
            axes = threat.image_axes(slope)
            length = tf.reduce_sum(tf.abs(slope), axes, keepdims=True)
            # Zero gradients stay zero, sums beyond the type's range stay numbers.
            tiny = np.finfo(slope.dtype.name).tiny
            slope /= tf.clip_by_value(length, tiny, highest)
        total = tf.raw_ops.ClipByValue(
            t=self.decay * memory + slope,
            clip_value_min=tf.constant(-highest, slope.dtype),
            clip_value_max=tf.constant(highest, slope.dtype),
        )
        return total, total
