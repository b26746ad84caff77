"""Intervals, paired tests and summaries of rollouts and timings: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

RESAMPLES = 10_000
"""Default number of bootstrap resamples of a paired difference."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a success rate, both in [0, 1].

    Raises ValueError when there is no trial or the successes do not fit the trials.
    """
    if trials <= 0:
        raise ValueError(f"got {trials} trials, expected at least 1: run episodes first")
    if not 0 <= successes <= trials:
        raise ValueError(f"got {successes} successes of {trials} trials, expected 0 <= successes <= trials")
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided McNemar p-value of two policies on the same starts.

    first, second: `[E]` bool, success in episode e. Only episodes in which the two outcomes differ count; without any the
    p-value is 1.0. Raises ValueError when the outcomes are not paired.
    """
    first_E, second_E = _paired(first, second)
    only_first = int(np.sum(first_E & ~second_E))
    discordant = int(np.sum(first_E != second_E))
    if discordant == 0:
        return 1.0
    return float(binomtest(only_first, discordant, 0.5).pvalue)


def paired_difference(
    policy: ArrayLike, teacher: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Success rate of `policy` minus that of `teacher`, with a percentile-bootstrap interval over episodes.

    policy, teacher: `[E]` bool on the same starts. Returns (difference, low, high) in [-1, 1].
    An episode's paired difference is -1, 0 or +1, so resampling episodes with replacement is a multinomial draw of the three
    counts: exact, and no `[resamples, E]` array is needed.
    """
    policy_E, teacher_E = _paired(policy, teacher)
    if resamples < 1:
        raise ValueError(f"got {resamples} resamples, expected at least 1 (10000 is usual)")
    episodes = policy_E.size
    wins = int(np.sum(policy_E & ~teacher_E))
    losses = int(np.sum(~policy_E & teacher_E))
    shares = np.array([losses, episodes - wins - losses, wins], dtype=np.float64) / episodes
    counts_R3 = np.random.default_rng(seed).multinomial(episodes, shares, size=resamples)
    differences_R = (counts_R3[:, 2] - counts_R3[:, 0]) / episodes
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(differences_R, [tail, 1.0 - tail])
    return (wins - losses) / episodes, float(low), float(high)


def mean_difference(
    policy: ArrayLike, teacher: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `policy` minus that of `teacher`, with a percentile-bootstrap interval over episodes.

    policy, teacher: `[E]` scores on the same starts. Returns (difference, low, high). Raises ValueError when not paired.
    """
    policy_E, teacher_E = np.asarray(policy, np.float64), np.asarray(teacher, np.float64)
    _paired(policy_E, teacher_E)
    difference_E = policy_E - teacher_E
    rows = np.random.default_rng(seed).integers(difference_E.size, size=(resamples, difference_E.size))
    low, high = np.quantile(difference_E[rows].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference_E.mean()), float(low), float(high)


def mode_entropy(counts: Mapping[str, int] | Sequence[int] | np.ndarray, num_modes: int) -> float:
    """Entropy of the mode frequencies over successful rollouts, base `num_modes` (as D3IL, ICLR 2024).

    counts: successes per mode (absent modes may be left out). 1 is uniform over all modes, 0 a single mode; nan when nothing
    succeeded. With num_modes 1 it is 0. Raises ValueError for negative counts or more modes than there are.
    """
    values = np.asarray(list(counts.values()) if isinstance(counts, Mapping) else counts, dtype=np.float64)
    if num_modes < 1:
        raise ValueError(f"got num_modes={num_modes}, expected at least 1")
    if np.any(values < 0):
        raise ValueError(f"got negative counts {values.tolist()}, expected how often each mode was reached")
    reached = values[values > 0]
    if reached.size > num_modes:
        raise ValueError(f"got {reached.size} modes reached of num_modes={num_modes}: pass how many the task has")
    if reached.size == 0:
        return math.nan
    if reached.size == 1:
        return 0.0
    shares = reached / reached.sum()
    return float(-np.sum(shares * np.log(shares)) / math.log(num_modes))


def mode_share_error(
    counts: ArrayLike, reference: ArrayLike, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Total variation between two distributions over modes, and its expected value by sampling alone.

    counts, reference: successes per mode `[modes]` of the policy and of the teacher. Returns (error, floor):
    error = 1/2 sum_i |p_i - q_i|; floor = its mean when both are drawn, with their numbers of successes, from the pooled
    distribution. An error near the floor cannot be told from none. Raises ValueError for negative counts or none at all.
    """
    first, second = np.asarray(counts, dtype=np.int64), np.asarray(reference, dtype=np.int64)
    if first.shape != second.shape or first.ndim != 1 or np.any(first < 0) or np.any(second < 0):
        raise ValueError(f"got counts {first.tolist()} and {second.tolist()}, expected two lists of counts over the same modes")
    if not first.sum() or not second.sum():
        raise ValueError("got no success on one side, expected at least one: there are no modes to compare")
    pooled = (first + second) / (first.sum() + second.sum())
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(int(side.sum()), pooled, size=resamples) / side.sum() for side in (first, second)]
    error = 0.5 * np.abs(first / first.sum() - second / second.sum()).sum()
    return float(error), float(0.5 * np.abs(drawn[0] - drawn[1]).sum(1).mean())


def latency_summary(milliseconds: ArrayLike) -> dict[str, float]:
    """Median, 95th and 99th percentile [ms] of `[C]` timed calls, and hz = 1000 / median.

    Raises ValueError when empty, not finite or not positive: such times were not measured.
    """
    times_C = np.asarray(milliseconds, dtype=np.float64).ravel()
    if times_C.size == 0:
        raise ValueError("got no timed calls, expected at least one (200 are usual): raise the number of timed calls")
    if not np.all(np.isfinite(times_C)) or np.any(times_C <= 0):
        raise ValueError("got times that are not finite and positive, expected milliseconds: measure again")
    median, p95, p99 = (float(value) for value in np.percentile(times_C, [50, 95, 99]))
    return {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "hz": 1000.0 / median}


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first_E, second_E = np.asarray(first), np.asarray(second)
    if first_E.shape != second_E.shape or first_E.ndim != 1:
        raise ValueError(
            f"got outcomes of shapes {first_E.shape} and {second_E.shape}, expected two lists of one length: "
            "run both policies on the same starts"
        )
    if first_E.size == 0:
        raise ValueError("got no episodes, expected at least one pair: run episodes first")
    return first_E.astype(bool), second_E.astype(bool)


def success_figures(result: dict[str, Any], reference: dict[str, Any], modes: Sequence[str]) -> dict[str, Any]:
    """A policy's success with its interval, and its paired difference to the reference from the same starts."""
    summary = result["summary"]
    success, its = (np.array([episode["success"] for episode in each["episodes"]]) for each in (result, reference))
    low, high = wilson_interval(summary["successes"], summary["episodes"])
    figures: dict[str, Any] = {
        "episodes": summary["episodes"], "successes": summary["successes"],
        "success_rate": summary["successes"] / summary["episodes"], "success_low": low, "success_high": high,
        "difference": None, "difference_low": None, "difference_high": None, "mcnemar_p": None,
        "failures": summary["failures"], "refused_actions": summary.get("refused_actions", 0),
        "episodes_with_refusals": summary.get("episodes_with_refusals", 0), "mode_counts": summary["mode_counts"],
        "modes_reached": summary["modes_reached"], "modes_total": summary["modes_total"], "entropy": summary["entropy"],
        "mode_share_error": None, "mode_share_floor": None, "episode_success": success.tolist(),
    }  # fmt: skip
    if result is not reference:
        difference, difference_low, difference_high = paired_difference(success, its)
        figures |= {"difference": difference, "difference_low": difference_low, "difference_high": difference_high,
                    "mcnemar_p": mcnemar_p(success, its)}  # fmt: skip
        mine, theirs = ([side["summary"]["mode_counts"].get(mode, 0) for mode in modes] for side in (result, reference))
        if sum(mine) and sum(theirs):
            figures["mode_share_error"], figures["mode_share_floor"] = mode_share_error(mine, theirs)
    if summary.get("score") is not None:
        mine, theirs = ([episode["score"] or 0.0 for episode in each["episodes"]] for each in (result, reference))
        names = ("score_difference", "score_difference_low", "score_difference_high")
        figures |= {"score": summary["score"], **dict(zip(names, mean_difference(mine, theirs), strict=True))}
    return figures
