# SPDX-License-Identifier: Apache-2.0
"""How the losses of several tasks become one number per image.

A balance defines two things: what is climbed, and the score of points where they are
judged by losses (`judging`). All act per image: no image's loss scales another's.
Below, L_t is the loss of attacked task t out of M, L_t(start) that of the point the run
began from, L_t(clean) that of the clean image, g_t the gradient of L_t, and what stands
in [brackets] is held fixed (stop_gradient). Where losses divide or have their logarithm
taken, a loss of nearly 0 counts as 1e-12: cross-entropy in float32 is 0 where logits
are over 17 apart, and such a task must count, too. A negative loss that divides also
counts as 1e-12: it is due to rounding, or else refused (`objectives`). Below 0 the
logarithm continues as a straight line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.attacks import threat

Losses = Mapping[str, tf.Tensor]

_LEAST = 1e-12  # The least loss that divides others or has its logarithm taken.
_normalize = threat.L2(0.0).steepest


@dataclasses.dataclass(frozen=True)
class Balance:
    """One way to make one number of several losses.

    Attributes:
      combine: (losses, losses that they are compared with, both [tasks, batch],
        progress) -> what is climbed, [batch].
      judge: (losses, losses of the clean image or None) -> the score, [batch]: of the
        point and the clean image alone, so that runs from different starts compare.
      formula: What is climbed, a line of Markdown for docs/attacks.md.
      source: Where it is from, likewise.
      weighted: Whether the tasks may have weights: they multiply the losses, and
        would cancel out of all the other balances.
      relative: Whether losses are divided by losses, which must not be negative then.
      compared: What the losses that are climbed are compared with: "start", those at
        the start of the run; "clean", those of the clean image, which then also enter
        the score; "" where there is no comparison.
      steepest: What becomes of each task's gradient before they are added up; None
        where the gradient is that of `combine`.
    """

    combine: Callable[[tf.Tensor, tf.Tensor, tf.Tensor | float], tf.Tensor]
    judge: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]
    formula: str
    source: str
    weighted: bool = False
    relative: bool = False
    compared: str = ""
    steepest: Callable[[tf.Tensor], tf.Tensor] | None = None

    @property
    def judges_by_largest(self) -> bool:
        """Whether the score is that of the task whose loss grew most."""
        return self.judge is _largest_growth

    @property
    def normalizes(self) -> bool:
        """Whether gradients are divided by their norms over what may change."""
        return self.steepest is _normalize

    def __call__(
        self,
        losses: Losses,
        before: Losses | None = None,
        progress: tf.Tensor | float = 0.0,
    ) -> tf.Tensor:
        """Returns what is climbed, [batch].

        `before` are the losses that `compared` names; None: those of this point.
        """
        before = losses if before is None else before
        divisors = _positive(tf.stop_gradient(_stack(before, losses)))
        return self.combine(_stack(losses, losses), divisors, progress)

    def score(self, losses: Losses, clean: Losses | None = None) -> tf.Tensor:
        """Returns what points are judged by, [batch]; the same at any progress."""
        divisors = None if clean is None else _positive(_stack(clean, losses))
        return self.judge(_stack(losses, losses), divisors)


def _stack(losses: Losses, order: Losses) -> tf.Tensor:
    return tf.stack([losses[name] for name in order])


def _positive(losses: tf.Tensor) -> tf.Tensor:
    """Returns the losses, with 1e-12 for smaller ones, to divide others by."""
    return tf.where(losses < _LEAST, tf.cast(_LEAST, losses.dtype), losses)


# What is climbed.


def _sum(losses, reference=None, progress=0.0) -> tf.Tensor:
    del reference, progress
    return tf.reduce_sum(losses, axis=0)


def _mean(losses, reference=None, progress=0.0) -> tf.Tensor:
    del reference, progress
    return tf.reduce_mean(losses, axis=0)


def _dgba(losses, reference, progress) -> tf.Tensor:
    del reference, progress
    return _sum(losses / _positive(tf.stop_gradient(losses)))


def _total_growth(losses, reference, progress=0.0) -> tf.Tensor:
    del progress
    return _sum(losses / reference)


def _wgd(losses, start, progress) -> tf.Tensor:
    del progress
    current = tf.stop_gradient(losses)
    mean = tf.reduce_mean(current / start, axis=0)
    # A loss of 0 (perhaps of a task without a target) stays; its weight is above 0.
    return _sum(_positive(current) / start / _positive(mean) * losses)


def _wgd_released(losses, start, progress) -> tf.Tensor:
    return tf.where(tf.equal(progress, 0), _sum(losses), _sum(losses / start))


def _worst(losses, clean, progress) -> tf.Tensor:
    growth = losses / clean
    mean, largest = tf.reduce_mean(growth, axis=0), tf.reduce_max(growth, axis=0)
    return tf.where(tf.equal(progress, 0), mean, largest)


# What points are judged by.


def _log(losses: tf.Tensor) -> tf.Tensor:
    """Returns log L; below 0 log 1e-12 + L, so that a larger loss still scores more."""
    least = tf.cast(_LEAST, losses.dtype)
    logs = tf.math.log(tf.maximum(losses, least))
    return tf.where(losses < 0, tf.math.log(least) + losses, logs)


def _mean_log(losses, clean) -> tf.Tensor:
    """The mean of log L_t: the e-folds by which losses have grown, up to a constant.

    Dividing each loss by that of the clean image would change the score by the same
    number at all points. So it is left out.
    """
    del clean
    return tf.reduce_mean(_log(losses), axis=0)


def _relative_sum(losses, clean) -> tf.Tensor:
    """The sum of L_t / L_t(clean); of L_t where the clean losses are not known."""
    return _sum(losses) if clean is None else _total_growth(losses, clean)


def _largest_growth(losses, clean) -> tf.Tensor:
    """The largest log(L_t / L_t(clean)); of log L_t where these are not known.

    A task whose two losses are both 0, such as one without a target, does not count: in
    a targeted attack, which lowers the others, it would always be the largest.
    """
    if clean is None:
        return tf.reduce_max(_log(losses), axis=0)
    growth = _log(losses) - _log(clean)
    least = tf.cast(_LEAST, losses.dtype)
    absent = (losses <= least) & (clean <= least)
    largest = tf.reduce_max(tf.where(absent, -math.inf, growth), axis=0)
    return tf.where(tf.reduce_all(absent, axis=0), 0.0, largest)


BALANCES: dict[str, Balance] = {
    "sum": Balance(
        _sum,
        _sum,
        "`sum_t w_t L_t`, weights by `--attack_weights=seg:1,depth:0.5`",
        "Mao et al. 2020 (the paper's joint attack)",
        weighted=True,
    ),
    "mean": Balance(
        _mean,
        _mean,
        "`(1/M) sum_t w_t L_t`; the same steps as `sum`, but other gradient norms",
        "Mao et al. 2020 (its theorem)",
        weighted=True,
    ),
    "dgba": Balance(
        _dgba,
        _mean_log,
        "`sum_t L_t / [L_t]`, gradient `sum_t g_t / L_t`",
        "Zhang et al. 2023, arXiv 2305.12066 (DGBA, GB-MTA), its code",
        relative=True,
    ),
    "dgba_paper": Balance(
        _total_growth,
        _relative_sum,
        "`sum_t L_t / L_t(clean)`",
        "Zhang et al. 2023, arXiv 2305.12066, its text",
        relative=True,
        compared="clean",
    ),
    "wgd": Balance(
        _wgd,
        _mean_log,
        "`sum_t [r_t] L_t`, where `r_t` is the task's loss relative to its start, "
        "`L_t / L_t(start)`, divided by the mean of these over the tasks",
        "Ghamizi et al. 2022, arXiv 2110.15053, its text",
        relative=True,
        compared="start",
    ),
    "wgd_released": Balance(
        _wgd_released,
        _mean_log,
        "`sum_t L_t / L_t(start)`; at the first step `sum_t L_t`",
        "Ghamizi et al. 2022, its code",
        relative=True,
        compared="start",
    ),
    "normalized": Balance(
        _sum,
        _mean_log,
        "gradient `sum_t g_t / ‖g_t‖_2`; one backward pass per task",
        "normalised gradients",
        steepest=_normalize,
    ),
    "sign_sum": Balance(
        _sum,
        _mean_log,
        "gradient `sum_t sign(g_t)`; one backward pass per task",
        "baseline of Zhang et al. 2023, arXiv 2305.12066",
        steepest=threat.Linf(0.0).steepest,
    ),
    "worst": Balance(
        _worst,
        _largest_growth,
        "`max_t L_t / L_t(clean)`; at the first step their mean",
        "the task that has suffered most so far is pushed further",
        relative=True,
        compared="clean",
    ),
}


def sum_of_steepest(
    tape: tf.GradientTape,
    x: tf.Tensor,
    losses: Sequence[tf.Tensor],
    steepest: Callable[[tf.Tensor], tf.Tensor],
    movable: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Returns the sum of the losses, with gradient sum_t steepest(g_t) towards `x`.

    That takes one backward pass per task, through heads and trunk alike, but only if a
    gradient is taken. Entries of a g_t that are not finite count as 0, so that one
    broken task does not hide the others. There is no gradient towards anything else,
    nor a second derivative.

    Args:
      tape: As for `base.with_replaced_gradient`.
      x: Images [batch, ...].
      losses: Each task's, [batch].
      steepest: Maps gradients [batch, ...] to what is added up.
      movable: Returns a gradient with 0 where the attack cannot move; None: it can
        move everywhere.
    """

    def make_gradient(slope_of):
        slopes = [slope_of(loss) for loss in losses]
        return tf.add_n([steepest(movable(s) if movable else s) for s in slopes])

    return base.with_replaced_gradient(tape, x, tf.add_n(list(losses)), make_gradient)
