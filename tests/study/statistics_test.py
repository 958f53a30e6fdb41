# SPDX-License-Identifier: Apache-2.0
"""Exact tests against SciPy, brute force, simulation; the bootstrap against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from mtr_tf.errors import InputError
from mtr_tf.evaluation import resampling
from mtr_tf.study import statistics


def effects(n, shift=0.5, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def t(values):
    return scipy.stats.ttest_1samp(values, 0.0).statistic


def sign_flip_p(values):
    """The p of one effect by itself."""
    return statistics.max_t([np.asarray(values)])[0, 0]


@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_sign_flips_against_scipy_and_brute_force(n):
    values = effects(n)
    expected = scipy.stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis) / np.std(x, axis, ddof=1),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    ).pvalue
    statistic = t(values)
    flips = itertools.product((1, -1), repeat=n)
    brute_force = np.mean([t(values * flip) >= statistic - 1e-9 for flip in flips])
    assert sign_flip_p(values) == pytest.approx(expected)
    assert sign_flip_p(values) == pytest.approx(brute_force)


def test_the_least_p_is_one_flip_and_equal_effects_have_it():
    assert sign_flip_p([1.0, 2.0, 1.5, 3.0, 2.5]) == 1 / 32
    assert sign_flip_p([2.0] * 5) == 1 / 32
    assert sign_flip_p([-2.0] * 5) == 1
    assert sign_flip_p([0.0] * 5) == 1


def test_seeds_without_an_effect_are_left_out():
    values = effects(5)
    with_gap = np.insert(values, 2, np.nan)
    assert sign_flip_p(with_gap) == sign_flip_p(values)
    assert sign_flip_p([np.nan] * 4) == 1
    assert sign_flip_p([np.nan, 1.0]) == 1


def test_max_t_by_hand():
    """For 4 seeds and two claims, p counts the flips under which either t is as large.

    The smaller t is corrected for itself alone, but its p is not below the larger t's.
    """
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([-1.0, -1.5, -1.0, -1.2])
    flips = list(itertools.product((1, -1), repeat=4))
    largest = [max(t(first * flip), t(second * flip)) for flip in flips]
    raw_p, corrected_p = statistics.max_t([first, second])
    assert corrected_p[0] == np.mean([value >= t(first) - 1e-9 for value in largest])
    assert raw_p[0] == 1 / 16
    assert corrected_p[1] == raw_p[1] == 1
    # With all signs flipped, the second claim has the larger t.
    assert corrected_p[0] == 2 / 16


@pytest.mark.parametrize("seed", range(6))
def test_max_t_against_all_sets_of_claims(seed):
    """Closed testing: a claim is as good as the worst set of claims that it is in."""
    rng = np.random.default_rng(seed)
    claims = rng.normal(rng.normal(0.3, 0.5, (5, 1)), 0.5, (5, 6))
    flips = list(itertools.product((1, -1), repeat=6))
    flipped = np.array([[t(claim * flip) for flip in flips] for claim in claims])
    expected = np.zeros(5)
    for size in range(1, 6):
        for subset in map(list, itertools.combinations(range(5), size)):
            largest = flipped[subset].max(axis=0)
            p = np.mean(largest >= largest[0] - 1e-9)
            expected[subset] = np.maximum(expected[subset], p)
    np.testing.assert_allclose(statistics.max_t(list(claims))[1], expected)


def test_max_t_of_nothing_and_of_seeds_that_differ():
    assert statistics.max_t([]).shape == (2, 0)
    with pytest.raises(InputError, match="same seeds"):
        statistics.max_t([[1.0], [1.0, 2.0]])


def test_many_claims_that_are_all_wrong_rarely_hold():
    """Ten dependent claims without any effect: one or more at 5 % in 5 % of studies."""
    rng = np.random.default_rng(3)
    studies = 400
    errors = 0
    for _ in range(studies):
        common_effect = rng.normal(size=7)
        claims = 0.5 * common_effect + rng.normal(size=(10, 7))
        errors += (statistics.max_t(list(claims))[1] <= 0.05).any()
    assert errors / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)
    assert errors  # Not because no claim ever holds.


def test_many_seeds_take_random_flips():
    values = effects(20, 0.3)
    p = sign_flip_p(values)
    assert p == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue / 2, abs=0.02)
    assert p == sign_flip_p(values)


def test_bootstrap_of_seeds_alone_against_a_loop():
    values = np.array([1.0, 4.0, np.nan, 2.5])
    draws = statistics.bootstrap(values, resamples=50, seed=4)
    for draw, counts in zip(draws, statistics.resampled_seeds(3, 50, 4), strict=True):
        sample = np.repeat([1.0, 4.0, 2.5], counts.astype(int))
        assert len(sample) == 3  # The missing one is not drawn.
        np.testing.assert_allclose(draw, sample.mean())
    assert np.isnan(statistics.bootstrap([np.nan] * 3, resamples=2)).all()


def test_bootstrap_draws_the_same_images_for_all_seeds():
    rows = np.random.default_rng(0).normal(size=(3, 6))  # [seeds, images]
    draws = statistics.bootstrap(
        rows.mean(axis=1), lambda counts: counts @ rows.T / 6, 6, resamples=40, seed=1
    )
    images = statistics.resampled_images(6, 40, 1).astype(int)
    seeds = statistics.resampled_seeds(3, 40, 1).astype(int)
    for draw, image_counts, seed_counts in zip(draws, images, seeds, strict=True):
        indices = np.repeat(np.arange(6), image_counts)
        by_seed = rows[:, indices].mean(axis=1)
        np.testing.assert_allclose(draw, np.repeat(by_seed, seed_counts).mean())


def test_seeds_that_are_left_out_are_left_out_on_images_too():
    rows = np.random.default_rng(0).normal(size=(4, 6))
    means = rows.mean(axis=1)
    means[1] = np.nan

    def on_images(table):
        return lambda counts: counts @ table.T / 6

    with_gap = statistics.bootstrap(means, on_images(rows), 6, resamples=20)
    fewer_rows = rows[[0, 2, 3]]
    without_gap = statistics.bootstrap(
        fewer_rows.mean(axis=1), on_images(fewer_rows), 6, resamples=20
    )
    np.testing.assert_allclose(with_gap, without_gap)


@pytest.mark.parametrize(("seeds", "images"), [(30, 40), (12, 80), (6, 40)])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_should(seeds, images):
    """Effects of seed + image + both, mean 0: in 95 % of studies, or more."""
    rng = np.random.default_rng(7)
    studies, hits = 200, 0
    for study in range(studies):
        rows = rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 0.5, (1, images))
        rows = rows + rng.normal(0, 0.5, (seeds, images))
        draws = statistics.bootstrap(
            rows.mean(axis=1),
            lambda counts, rows=rows: counts @ rows.T / images,
            images,
            resamples=400,
            seed=study,
        )
        low, high = interval(draws, rows.mean(), seeds)
        hits += low <= 0 <= high
    assert 0.95 - 0.05 < hits / studies < 1.0


def interval(draws, mean, seeds):
    """The 95 % interval of a study."""
    ends = np.percentile(draws, (2.5, 97.5))
    return resampling.widened(ends, mean, seeds, 0.95)


@pytest.mark.parametrize("seeds", [4, 6, 10])
def test_intervals_over_few_seeds_hold_the_truth_in_95_percent(seeds):
    rng = np.random.default_rng(3)
    studies, hits = 400, 0
    for study in range(studies):
        values = rng.normal(size=seeds)
        draws = statistics.bootstrap(values, resamples=1000, seed=study)
        low, high = interval(draws, values.mean(), seeds)
        hits += low <= 0 <= high
    assert abs(hits / studies - 0.95) < 0.04  # 3.6 binomial deviations.


def test_intervals_are_students_for_normal_draws():
    values = effects(6)
    draws = scipy.stats.norm.ppf((np.arange(20000) + 0.5) / 20000)
    draws = values.mean() + draws * values.std() / np.sqrt(6)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    result = interval(draws, values.mean(), 6)
    np.testing.assert_allclose(result, expected, rtol=1e-3)


def test_an_interval_of_one_seed_stays():
    assert tuple(resampling.widened((0.1, 0.3), 0.15, 1, 0.95)) == (0.1, 0.3)


def test_bootstrap_has_the_spread_of_a_mean():
    values = effects(200, seed=2)
    draws = statistics.bootstrap(values, resamples=4000)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", random_state=0
    )
    low, high = np.percentile(draws, (2.5, 97.5))
    np.testing.assert_allclose(
        (low, high), tuple(expected.confidence_interval), atol=0.02
    )
    assert draws.std() == pytest.approx(expected.standard_error, rel=0.1)


@pytest.mark.parametrize(("n", "d"), [(4, 1.0), (10, 0.5), (30, 0.7)])
def test_power_against_scipys_noncentral_t(n, d):
    critical = scipy.stats.t.ppf(0.975, n - 1)
    expected = scipy.stats.nct.sf(critical, n - 1, d * np.sqrt(n))
    assert statistics.power(2.0, 2 * d, n, 0.025) == pytest.approx(expected)


def test_power_against_simulated_studies():
    n, d, level = 8, 0.9, 0.05
    values = np.random.default_rng(0).normal(d, 1.0, (20_000, n))
    p_values = scipy.stats.ttest_1samp(
        values, 0.0, axis=1, alternative="greater"
    ).pvalue
    assert statistics.power(1.0, d, n, level) == pytest.approx(
        np.mean(p_values <= level), abs=0.01
    )


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_seeds_needed_are_the_first_with_that_power(ratio):
    by_hand = next(
        n
        for n in range(6, 1000)
        if scipy.stats.nct.sf(
            scipy.stats.t.ppf(0.975, n - 1), n - 1, np.sqrt(n) * ratio
        )
        >= 0.9
    )
    assert statistics.seeds_needed(3.0, 3.0 * ratio, 0.025) == by_hand


@pytest.mark.parametrize(("n", "p"), [(5, 2 / 32), (6, 2 / 64)])
def test_another_claim_of_the_other_sign_doubles_the_least_p(n, p):
    """Even for an effect that is nearly the same in every seed."""
    effect = 1.0 + 1e-3 * np.arange(n)
    opposite = -1.0 - 1e-4 * np.arange(n)  # Its t is larger, and below 0.
    flips = np.array(list(itertools.product((1, -1), repeat=n)))
    t = [
        scipy.stats.ttest_1samp(flips * x, 0, axis=1).statistic
        for x in (effect, opposite)
    ]
    by_hand = np.mean(np.max(t, axis=0) >= t[0][0] * (1 - 1e-9))
    raw_p, corrected_p = statistics.max_t([effect, opposite])[:, 0]
    assert (raw_p, corrected_p) == (1 / 2**n, by_hand) == (p / 2, p)
    assert (n >= statistics.least_seeds(0.05, claims=2)) == (p <= 0.05)


def test_seeds_needed_for_large_small_and_certain_effects():
    assert statistics.least_seeds(0.05) == 5  # 1/32 is the first p below.
    assert statistics.least_seeds(0.05, claims=24) == 6  # 2/64 is.
    assert statistics.seeds_needed(1.0, 100.0, 0.05, least=5) == 5
    assert statistics.seeds_needed(0.0, 0.01, 0.001) == 2
    assert statistics.seeds_needed(1.0, 1e-3, 0.05) is None


@pytest.mark.parametrize("n", [4, 6, 20])
def test_the_detectable_effect_is_found_nine_times_in_ten(n):
    effect = statistics.detectable(0.02, n, 0.025)
    assert statistics.power(0.02, effect, n, 0.025) == pytest.approx(0.9, abs=1e-6)
    assert statistics.detectable(0.0, n, 0.025) == 0


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_against_scipy_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=12), rng.integers(0, 4, 12)
    expected = scipy.stats.spearmanr(x, y).statistic
    assert statistics.rank_correlation(x, y) == pytest.approx(expected)
    assert statistics.rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert np.isnan(statistics.rank_correlation(x, np.ones(12)))


def test_rank_interval_by_hand_and_at_the_ends():
    error = np.sqrt((1 + 0.6**2 / 2) / 17)
    by_hand = np.tanh(np.arctanh(0.6) + np.array([-1, 1]) * 1.959964 * error)
    assert statistics.rank_interval(0.6, 20) == pytest.approx(by_hand)
    assert statistics.rank_interval(1.0, 20) == (1, 1)


def test_rank_intervals_hold_the_true_correlation_as_often_as_they_say():
    """For normal pairs with correlation r, Spearman's is 6/pi arcsin(r/2)."""
    rng = np.random.default_rng(0)
    r, n, hits = 0.6, 40, []
    rho = 6 / np.pi * np.arcsin(r / 2)
    for _ in range(600):
        x = rng.normal(size=n)
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=n)
        low, high = statistics.rank_interval(statistics.rank_correlation(x, y), n)
        hits.append(low <= rho <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)
