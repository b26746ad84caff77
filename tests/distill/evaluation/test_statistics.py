"""Statistics against numbers worked out by hand, textbook cases and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from distill.evaluation.statistics import (
    latency_summary,
    mcnemar_p,
    mean_difference,
    mode_entropy,
    mode_share_error,
    paired_difference,
    success_figures,
    wilson_interval,
)

Z95 = 1.959963984540054


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (8, 10), (1, 1), (196, 200), (15, 148)])
def test_wilson_is_the_closed_form(successes, trials):
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low, high = wilson_interval(successes, trials)
    assert low == pytest.approx(centre - half, abs=1e-9)
    assert high == pytest.approx(centre + half, abs=1e-9)


def test_wilson_textbook_case():
    # Newcombe (1998), 15 of 148 by the score method without continuity correction: 0.0624 to 0.1605
    low, high = wilson_interval(15, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)


def test_wilson_is_wider_with_more_confidence_and_stays_in_bounds():
    narrow, wide = wilson_interval(5, 10, 0.8), wilson_interval(5, 10, 0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4), (0, -1)])
def test_wilson_refuses_what_is_no_rate(successes, trials):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, trials)


def _mcnemar_by_enumeration(only_first: int, only_second: int) -> float:
    total = only_first + only_second
    here = math.comb(total, only_first)
    return sum(math.comb(total, k) for k in range(total + 1) if math.comb(total, k) <= here) / 2**total


@pytest.mark.parametrize(("only_first", "only_second"), list(itertools.product(range(5), range(5))))
def test_mcnemar_is_the_exact_binomial(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True, True, False]
    second = [False] * only_first + [True] * only_second + [True, True, False]
    expected = _mcnemar_by_enumeration(only_first, only_second)
    assert mcnemar_p(first, second) == pytest.approx(expected)
    assert mcnemar_p(second, first) == pytest.approx(expected)


def test_mcnemar_by_hand():
    # six discordant, all one way: 2 * (1/2)^6 = 1/32
    assert mcnemar_p([True] * 6, [False] * 6) == pytest.approx(1 / 32)
    assert mcnemar_p([True, False], [True, False]) == 1.0


@pytest.mark.parametrize("function", [mcnemar_p, paired_difference])
@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], []), ([[True]], [[True]])])
def test_outcomes_that_are_not_paired_are_refused(function, first, second):
    with pytest.raises(ValueError, match="got .*expected"):
        function(first, second)


def test_paired_difference_by_hand():
    policy = np.array([1, 1, 0, 0, 1, 0, 1, 1], dtype=bool)
    teacher = np.array([1, 1, 1, 1, 0, 1, 1, 1], dtype=bool)
    difference, low, high = paired_difference(policy, teacher)
    assert difference == pytest.approx((5 - 7) / 8)
    assert low <= difference <= high


def test_paired_difference_interval_is_that_of_every_resample():
    policy, teacher = np.array([1, 0, 1, 1], dtype=bool), np.array([0, 1, 1, 0], dtype=bool)
    gaps = policy.astype(int) - teacher.astype(int)
    everything = [np.mean([gaps[i] for i in picks]) for picks in itertools.product(range(4), repeat=4)]
    low, high = np.quantile(everything, [0.025, 0.975])
    assert paired_difference(policy, teacher, resamples=200_000) == pytest.approx((0.25, low, high))


def test_paired_difference_agrees_with_a_plain_bootstrap():
    random = np.random.default_rng(3)
    policy, teacher = random.random(150) < 0.7, random.random(150) < 0.85
    picks = random.integers(0, 150, (20_000, 150))
    plain = (policy[picks].astype(int) - teacher[picks].astype(int)).mean(1)
    _, low, high = paired_difference(policy, teacher)
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.008)


def test_paired_difference_is_zero_for_equal_outcomes_and_repeats():
    same = np.array([1, 0, 1], dtype=bool)
    assert paired_difference(same, same) == (0.0, 0.0, 0.0)
    other = np.array([1, 1, 0], dtype=bool)
    assert paired_difference(same, other, seed=5) == paired_difference(same, other, seed=5)


def test_entropy_by_hand():
    assert mode_entropy([5, 5], 2) == pytest.approx(1.0)
    assert mode_entropy({"left": 30, "right": 10}, 2) == pytest.approx(0.8112781)  # H(1/4) in bits
    assert mode_entropy([5, 5], 4) == pytest.approx(0.5)
    assert mode_entropy([7] * 24, 24) == pytest.approx(1.0)
    assert mode_entropy({"left": 9, "right": 0}, 2) == 0.0
    assert mode_entropy([3], 1) == 0.0


def test_entropy_of_no_success_is_nan():
    assert math.isnan(mode_entropy({}, 24))
    assert math.isnan(mode_entropy([0, 0], 2))


@pytest.mark.parametrize(("counts", "num_modes"), [([1, -1], 2), ([1, 1, 1], 2), ([1], 0)])
def test_entropy_refuses_impossible_counts(counts, num_modes):
    with pytest.raises(ValueError, match="got"):
        mode_entropy(counts, num_modes)


@pytest.mark.parametrize(
    ("counts", "reference", "error"),
    [
        ([30, 10], [10, 30], 0.5),  # 0.75, 0.25 against 0.25, 0.75
        ([3, 1, 0], [30, 10, 0], 0.0),
        ([5, 0], [0, 7], 1.0),
        ([2, 2, 4], [1, 1, 8], 0.3),  # .25 .25 .5 against .1 .1 .8
    ],
)
def test_mode_share_error_by_hand(counts, reference, error):
    assert mode_share_error(counts, reference)[0] == pytest.approx(error)
    assert mode_share_error(reference, counts)[0] == pytest.approx(error)


def test_the_floor_of_one_draw_a_side_is_how_often_two_draws_differ():
    # pooled shares 1/2, 1/2: two single draws differ with probability 1/2, and then the variation is 1
    assert mode_share_error([1, 0], [0, 1], resamples=40_000)[1] == pytest.approx(0.5, abs=0.01)
    assert mode_share_error([4, 0], [9, 0])[1] == 0.0  # a mode that never came cannot come by chance


@pytest.mark.parametrize(("counts", "reference"), [([40, 20, 5], [300, 120, 60]), ([6, 3], [5, 5])])
def test_the_floor_is_that_of_a_direct_simulation(counts, reference):
    # both sides are drawn, success by success, from the pooled shares
    random = np.random.default_rng(4)
    pooled = (np.array(counts) + np.array(reference)) / (sum(counts) + sum(reference))
    gaps = []
    for _ in range(3000):
        sides = [random.choice(len(pooled), size=sum(side), p=pooled) for side in (counts, reference)]
        shares = [[np.mean(side == mode) for mode in range(len(pooled))] for side in sides]
        gaps.append(sum(abs(p - q) for p, q in zip(*shares, strict=True)) / 2)
    error = np.std(gaps) / math.sqrt(3000)
    _, floor = mode_share_error(counts, reference, resamples=20_000)
    assert floor == pytest.approx(np.mean(gaps), abs=4 * error + 0.002) and floor > 5 * error


def test_the_floor_falls_with_the_root_of_the_number_of_episodes_and_repeats():
    small, large = (mode_share_error([30 * n, 20 * n], [30 * n, 20 * n], 20_000)[1] for n in (1, 4))
    assert small / large == pytest.approx(2.0, rel=0.05)
    assert mode_share_error([9, 4], [5, 5], seed=3) == mode_share_error([9, 4], [5, 5], seed=3)


@pytest.mark.parametrize(
    ("counts", "reference", "message"),
    [
        ([1, -1], [1, 1], "expected two lists of counts over the same modes"),
        ([1, 1], [1, 1, 1], "expected two lists of counts over the same modes"),
        ([[1]], [[1]], "expected two lists"),
        ([0, 0], [3, 1], "no success on one side"),
        ([3, 1], [0, 0], "no success on one side"),
    ],
)
def test_shares_that_cannot_be_compared_are_refused(counts, reference, message):
    with pytest.raises(ValueError, match=message):
        mode_share_error(counts, reference)


def test_latency_by_hand():
    summary = latency_summary(np.arange(1, 102))
    assert summary == pytest.approx({"median_ms": 51.0, "p95_ms": 96.0, "p99_ms": 100.0, "hz": 1000 / 51})
    assert latency_summary([8.0])["hz"] == 125.0


@pytest.mark.parametrize("times", [[], [1.0, math.nan], [1.0, 0.0], [-1.0]])
def test_latency_refuses_what_was_not_measured(times):
    with pytest.raises(ValueError, match="got"):
        latency_summary(times)


def test_a_difference_of_scores_is_paired():
    teacher = np.array([0.9, 0.1, 0.5, 0.7])
    assert mean_difference(teacher - 0.1, teacher) == pytest.approx((-0.1, -0.1, -0.1))  # the same in every episode
    mixed = teacher + np.array([0.4, -0.2, 0.0, 0.2])
    difference, low, high = mean_difference(mixed, teacher, resamples=20_000)
    assert difference == pytest.approx(0.1) and low < 0 < high <= 0.4
    # the bootstrap's spread is that of the mean: sqrt(mean((d - .1)^2) / 4) = .1118
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.05 / 4), rel=0.15)
    assert mean_difference(mixed, teacher) == mean_difference(mixed, teacher)
    with pytest.raises(ValueError, match="expected two lists of one length"):
        mean_difference([0.1], [0.1, 0.2])


def test_a_score_is_in_the_figures_where_there_is_one():
    summary = {"episodes": 2, "successes": 1, "failures": {}, "mode_counts": {"a": 1}, "modes_reached": 1, "modes_total": 1,
               "entropy": 0.0, "score": 0.5}  # fmt: skip
    ours = {"summary": summary, "episodes": [{"success": True, "score": 1.0}, {"success": False, "score": None}]}
    theirs = {"summary": summary, "episodes": [{"success": True, "score": 0.8}, {"success": False, "score": 0.2}]}
    figures = success_figures(ours, theirs, ["a"])
    assert figures["score"] == 0.5 and figures["score_difference"] == pytest.approx(0.0)
    assert figures["score_difference_low"] == pytest.approx(-0.2) and figures["score_difference_high"] == pytest.approx(0.2)
    assert "score" not in success_figures({**ours, "summary": {**summary, "score": None}}, theirs, ["a"])
