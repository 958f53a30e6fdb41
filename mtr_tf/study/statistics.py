# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired seeds: bootstrap over seeds and images, exact tests.

An effect is a number per seed, positive where a claim is right. Seeds are independent;
all of them share the same images.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
from scipy import special  # pyrefly: ignore[untyped-import]  # No annotations.

from mtr_tf.errors import InputError

EXACT = 16  # The most seeds for which all changes of sign are tried.
RANDOM_FLIPS = 65536  # Number of random changes of sign for more seeds.
POWER = 0.9  # Nine times in ten.
MOST_SEEDS = 1000  # The largest number of seeds that is recommended.
LEAST_RANKED = 6  # The fewest pairs for which a rank correlation is shown.
_ROUNDING = 1e-9  # Statistics with a smaller relative difference count as equal.


def sign_flips(seeds: int) -> np.ndarray:
    """Returns changes of sign, `[flips, seeds]` of 1 and -1; row 0 changes none.

    There are all 2^n of them up to n = 16, and 65536 random ones beyond.
    """
    if seeds > EXACT:
        rng = np.random.default_rng(0)
        flips = rng.choice((1.0, -1.0), (RANDOM_FLIPS, seeds))
        flips[0] = 1.0
        return flips
    numbers = np.arange(2**seeds)[:, np.newaxis]
    return 1.0 - 2.0 * (numbers >> np.arange(seeds) & 1)


def studentised(effects: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Returns `mean / (s / sqrt(n))` under each change of sign.

    Args:
      effects: `[seeds]`; NaN are left out.
      flips: `[flips, seeds]`, as `sign_flips` returns them.

    Returns:
      float64 `[flips]`: infinite where all effects are equal and not 0; 0 where all are
      0 or there are fewer than two.
    """
    valid = ~np.isnan(effects)
    values, count = effects[valid], valid.sum()
    if count < 2 or not values.any():
        return np.zeros(len(flips))
    flipped = flips[:, valid] * values
    mean = flipped.mean(axis=1)
    error = flipped.std(axis=1, ddof=1) / np.sqrt(count)
    equal = error <= _ROUNDING * np.abs(values).max()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(equal, np.sign(mean) * np.inf, mean / error)


def max_t(effects: Sequence[np.ndarray], least: int = 1) -> np.ndarray:
    """One-sided p-values of many effects on the same seeds, alone and corrected.

    Alone: if effects are symmetric about 0, each change of the signs of seeds is as
    likely as what was observed. p is the share of these changes whose studentised mean
    is at least as large as the observed one (Fisher, "The Design of Experiments", 1935,
    section 21): 2^-n at best, and 1 for an effect without a number.

    Corrected, by step-down max-T (Westfall and Young, "Resampling-Based Multiple
    Testing", 1993, section 2.6): effects are ordered from the largest studentised mean
    to the smallest. The corrected p of an effect is the share of changes of sign, the
    same for all effects, under which the largest mean among this effect and those after
    it is at least as large as the observed mean of this one; it is no less than the
    corrected p of the effect before. The chance of any false "positive" is at most the
    level, however the effects depend on each other.

    Args:
      effects: Arrays `[seeds]` for the same seeds, NaN where a seed has no effect.
      least: Effects of fewer seeds have a corrected p of 1. They do not count in the
        corrected p of other effects, which they could only increase.

    Returns:
      float64 `[2, effects]`: p alone, p corrected.

    Raises:
      InputError: The effects are of different numbers of seeds.
    """
    counts = {len(values) for values in effects}
    if len(counts) > 1:
        raise InputError(
            f"effects must all have the same seeds; got {sorted(counts)} seeds."
        )
    if not effects:
        return np.zeros((2, 0))
    flips = sign_flips(counts.pop())
    t_values = np.stack(
        [studentised(np.asarray(values, float), flips) for values in effects]
    )
    observed = t_values[:, :1]
    thresholds = observed - _ROUNDING * np.where(
        np.isinf(observed), 0.0, np.abs(observed)
    )
    p_single = (t_values >= thresholds).mean(axis=1)
    seed_counts = (~np.isnan(np.stack(effects))).sum(axis=1)
    order = np.argsort(-observed[:, 0], kind="stable")
    order = order[seed_counts[order] >= least]
    p_corrected = np.ones_like(p_single)
    if len(order):
        # The largest statistic of each effect and those after it.
        maxima = np.maximum.accumulate(t_values[order[::-1]])[::-1]
        shares = (maxima >= thresholds[order]).mean(axis=1)
        p_corrected[order] = np.maximum.accumulate(shares)
    return np.where(seed_counts == 0, 1.0, np.stack([p_single, p_corrected]))


def resampled_seeds(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each seed is drawn, float64 `[resamples, seeds]`."""
    rng = np.random.default_rng((seed, 1))
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(float)


def resampled_images(images: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each image is drawn, float64 `[resamples, images]`."""
    rng = np.random.default_rng((seed, 2))
    return rng.multinomial(images, np.full(images, 1 / images), resamples).astype(float)


def bootstrap(
    effects: np.ndarray,
    on_images: Callable[[np.ndarray], np.ndarray] | None = None,
    images: int = 0,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Returns resampled mean effects, float64 `[resamples]`.

    Seeds are drawn with replacement. With `on_images`, images are drawn too, the same
    for all models and seeds (a two-way bootstrap: Owen, "The pigeonhole bootstrap",
    2007). Its intervals are, if anything, too wide for images. Over few seeds, plain
    percentiles are too narrow: see `resampling.widened`.

    Args:
      effects: `[seeds]`, on all images; seeds that are NaN are left out.
      on_images: Maps counts `[resamples, images]` to effects `[resamples, seeds]`.
      images: Number of images, with `on_images`.
      resamples: Number of resamples.
      seed: Random seed.
    """
    effects = np.asarray(effects, float)
    valid = ~np.isnan(effects)
    if not valid.any():
        return np.full(resamples, np.nan)
    counts = resampled_seeds(int(valid.sum()), resamples, seed)
    values = effects[np.newaxis, valid]
    if on_images and images:
        values = on_images(resampled_images(images, resamples, seed))[:, valid]
    is_number = ~np.isnan(values)  # A resample may leave a seed without an effect.
    total = (np.where(is_number, values, 0.0) * counts).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return total / (is_number * counts).sum(axis=1)


# Power: how many seeds tell a difference of a given size from none.


def power(deviation: float, difference: float, seeds: int, level: float) -> float:
    """The power of Student's one-sided t-test, if effects of seeds are normal.

    This is the share of studies whose studentised mean, which has the noncentral t
    distribution, is beyond the critical value (Cohen, "Statistical Power Analysis",
    1988, section 2.5). It is also how often an effect of 0 is told from `difference`.

    Args:
      deviation: Standard deviation of the effect over seeds.
      difference: The true mean effect, above 0.
      seeds: Number of seeds, at least 2.
      level: Chance of finding a difference where there is none.
    """
    if deviation <= 0:
        return 1.0
    critical = special.stdtrit(seeds - 1, 1 - level)
    shift = difference * math.sqrt(seeds) / deviation
    return 1.0 - float(special.nctdtr(seeds - 1, shift, critical))


def least_seeds(level: float, claims: int = 1) -> int:
    """The fewest seeds whose exact test can reach a level for any effect large enough.

    The p of such an effect is 2^-n for a single claim. With `max_t` over several claims
    it is up to 2 / 2^n: if the signs of all seeds change, another claim whose mean is
    far below 0 gets one above 0, which may exceed that of this claim.
    """
    flips = 2 if claims > 1 else 1  # As observed, and with all signs changed.
    return max(2, math.ceil(math.log2(flips / level)))


def seeds_needed(
    deviation: float, difference: float, level: float, least: int = 2
) -> int | None:
    """The fewest seeds that find a difference nine times in ten.

    Args:
      deviation: Standard deviation of the effect over seeds.
      difference: The true mean effect, above 0.
      level: Level of the one-sided test.
      least: The smallest number to return.

    Returns:
      The number, or None if it is more than `MOST_SEEDS`.
    """

    def power_of(seeds: int) -> float:
        return power(deviation, difference, seeds, level)

    if power_of(MOST_SEEDS) < POWER:
        return None
    return least + bisect.bisect_left(range(least, MOST_SEEDS), POWER, key=power_of)


def detectable(deviation: float, seeds: int, level: float) -> float:
    """The smallest mean effect that a number of seeds finds nine times in ten."""
    if deviation <= 0:
        return 0.0
    critical = special.stdtrit(seeds - 1, 1 - level)
    # The noncentrality whose distribution has a tenth below the critical value.
    shift = special.nctdtrinc(seeds - 1, 1 - POWER, critical)
    return float(shift) * deviation / math.sqrt(seeds)


# Rank correlation.


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; equal values get the mean of their ranks.

    Args:
      x: `[pairs]`, without NaN.
      y: `[pairs]`.

    Returns:
      The correlation; NaN if all values of `x` or of `y` are equal.
    """
    ranks = np.stack([_ranks(x), _ranks(y)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1)).prod()
    return float(ranks.prod(axis=0).sum() / scale) if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse.reshape(-1)]


def rank_interval(rho: float, pairs: int) -> tuple[float, float]:
    """The 95 % confidence interval of a rank correlation of independent pairs.

    Fisher's transformation with the variance (1 + rho^2 / 2) / (n - 3) (Bonett and
    Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", 2000).
    """
    error = math.sqrt((1 + rho**2 / 2) / (pairs - 3))
    reach = float(special.ndtri(0.975)) * error
    with np.errstate(divide="ignore"):
        middle = np.arctanh(rho)
    return float(np.tanh(middle - reach)), float(np.tanh(middle + reach))
