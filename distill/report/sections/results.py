"""The main table: a row for each policy, with everything that one compares first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.report.policies import Policy, Results, comparison_cell, reference_name, reference_policy
from distill.report.section import KINDS, Section
from distill.report.sections.latency import busy_line
from distill.report.tables import NOTHING, Cell, Table, is_missing, number, percent, success_cell

EXISTING = ("conversion", "comparison")
"""Reports on policies that were there before."""


@dataclass(frozen=True)
class _Column:
    """meaning: {it} is the reference; cell: of a policy; needs: a key of the policies without which no row has anything.

    main: whether it is in the main table, which fits a screen; else in the one below the figures. optional: left out of a run's
    table, too, where no policy has a value.
    """

    title: str
    meaning: str
    cell: Callable[[Policy, Results], Cell]
    needs: str = "name"
    kinds: tuple[str, ...] = KINDS
    main: bool = True
    optional: bool = False

    def shown(self, results: Results) -> bool:
        """A run's table always has the same columns, others have those that some policy has a value for."""
        known = any(not is_missing(policy.get(self.needs)) for policy in results["policies"])
        return results["kind"] in self.kinds and (known or (results["kind"] == "run" and not self.optional))


def main_table(results: Results) -> Table:
    """A row per policy, and the oracle's: success, time and modes first."""
    return _table(results, True)


def further_table(results: Results) -> Table | None:
    """The columns that the main table leaves out; None where there are none."""
    table = _table(results, False)
    return table if len(table.columns) > 1 else None


def _table(results: Results, main: bool) -> Table:
    it = reference_name(results)
    # without success the main table has room for everything
    columns = [column for column in _columns() if column.shown(results)
               and (column.title == "Policy" or main == (column.main or not results["measured_success"]))]  # fmt: skip
    rows = [tuple(column.cell(policy, results) for column in columns) for policy in results["policies"]]
    oracle = results.get("oracle")
    if oracle and main:
        known = {"Policy": Cell("Oracle", ("the test starts' demonstrations, replayed by the same actions",)),
                 "Success": success_cell(oracle), "Failed": _failures_cell(oracle, results)}  # fmt: skip
        rows.insert(0, tuple(known.get(column.title, Cell(NOTHING)) for column in columns))
    return Table(tuple((column.title.format(it=it), column.meaning.format(it=it)) for column in columns), tuple(rows))


def _columns() -> tuple[_Column, ...]:
    return (
        _Column("Policy", "", _policy_cell),
        _Column("Success", "share of episodes solved, 95 % Wilson interval",
                lambda policy, _: success_cell(policy), "success_rate"),
        _Column("Score", "mean over the episodes of the score that the environment gives, such as the largest reward; paired: "
                "minus the {it}'s on the same starts, 95 % bootstrap interval", _score_cell, "score", optional=True),
        _Column("Latency [ms]", "median of a policy call; 95th and 99th percentile", _latency_cell),
        _Column("Hz", "policy calls per second, 1 / median", _hz_cell),
        _Column("Speed-up", "the {it}'s median latency / this policy's", _speedup_cell),
        _Column("Modes", "modes reached in successful episodes, of those that the task has", _modes_cell, "success_rate"),
        _Column("Recall", "share of the {it}'s samples within the policy's support, per observation; below: coverage, the "
                "share with a sample of the policy near them", _recall_cell, "fidelity"),
        _Column("Against the {it}", "success minus the {it}'s on the same starts, in percentage points; paired: 95 % bootstrap "
                "interval, exact McNemar p", lambda policy, _: comparison_cell(policy, NOTHING), "success_rate"),
        _Column("NFE", "network evaluations per policy call", _nfe_cell),
        _Column("Failed", "failed episodes, by cause", _failures_cell, "success_rate"),
        _Column("Set distance", "energy distance of the policy's samples to fresh samples of the {it} for the same "
                "observation, and Chamfer to / from these; 0 is perfect", _distance_cell, main=False),
        _Column("Off-support", "share of samples farther from every sample of the {it} than those are from each other, and "
                "than 1 % of half an action's range", _off_support_cell, "fidelity", EXISTING, main=False),
        _Column("Entropy", "of the mode frequencies over successful episodes: 1 is uniform, 0 a single mode",
                lambda policy, _: Cell(number(policy.get("entropy"))), "success_rate", main=False),
        _Column("Mode shares", "half the summed differences of the mode frequencies from the {it}'s, 0 is equal; the floor is "
                "what two runs of one policy differ by on average. Per observation: of sets of samples, where the {it}'s set "
                "has several modes", _mode_shares_cell, kinds=("run",), main=False),
        _Column("Mode shares", "of sets of samples, where the {it}'s set for an observation has several modes: half the summed "
                "differences of the modes' shares, 0 is equal; the floor is another set of the {it}'s",
                _set_mode_shares_cell, kinds=EXISTING, main=False),
        _Column("OOD observations", "share of policy calls whose observation is out of distribution: farther from every "
                "demonstrated one than 99 % of those are from each other (of another start)",
                lambda policy, _: Cell(percent(policy.get("out_of_distribution_share"))), "out_of_distribution_share",
                main=False),
        _Column("Mode switches", "share of replans at which the new chunk takes another mode than the unexecuted rest of the "
                "last one, of those where both have a mode; – where none have, as when chunks are executed to their end",
                lambda policy, _: Cell(percent(policy.get("switch_rate"))), "switch_rate", main=False),
        _Column("Jerk [m/s³]", "root mean square jerk of the tool, mean over all episodes; less is smoother",
                lambda policy, _: Cell(number(policy.get("jerk"))), "jerk", main=False),
    )  # fmt: skip


def _policy_cell(policy: Policy, results: Results) -> Cell:
    """A baseline without a network has no parameters, only what it remembers."""
    reference, student, baseline = (
        policy.get("is_reference_teacher"), policy.get("is_default_student"), policy["kind"] == "baseline"
    )  # fmt: skip
    role = "default student" if student else "baseline, nothing is trained" if baseline else str(policy["kind"])
    if reference:
        role = "reference teacher" if policy["kind"] == "teacher" else f"reference, {policy['kind']}"
    count, what = policy.get("parameters"), "stored numbers" if baseline else "parameters"
    size = f"{what} unknown" if count is None else f"{count:,} {what}"
    return Cell(policy["label"], (role, size), "student" if student else "teacher" if reference else "")


def _score_cell(policy: Policy, results: Results) -> Cell:
    if is_missing(policy.get("score")) or policy.get("is_reference_teacher"):
        return Cell(number(policy.get("score")))
    difference, low, high = (f"{policy[f'score_difference{end}']:+.3f}" for end in ("", "_low", "_high"))
    return Cell(number(policy["score"]), (f"{difference} ({low} to {high})",))


def _modes_cell(policy: Policy, results: Results) -> Cell:
    reference = reference_policy(results)
    fewer = reference is not None and policy["modes_reached"] < reference["modes_reached"]
    return Cell(f"{policy['modes_reached']}/{policy['modes_total']}", *((("fewer",), "lower") if fewer else ()))


def _recall_cell(policy: Policy, results: Results) -> Cell:
    sets = policy.get("fidelity")
    if not sets:
        return Cell("reference" if policy.get("is_reference_teacher") else NOTHING)
    return Cell(percent(sets.get("recall")), (f"coverage {percent(sets.get('coverage'))}",))


def _mode_shares_cell(policy: Policy, results: Results) -> Cell:
    error, floor = policy.get("mode_share_error"), policy.get("mode_share_floor")
    shares = policy.get("observation_modes") or {}
    here: tuple[str, ...] = ()
    if not is_missing(shares.get("share_error")):
        here = (f"per observation {shares['share_error']:.3f}", f"floor {shares['share_error_floor']:.3f}")
    if error is None or is_missing(error):
        return Cell("reference" if policy.get("is_reference_teacher") else NOTHING, here)
    return Cell(f"{error:.3f}", (f"floor {floor:.3f}", *here))


def _set_mode_shares_cell(policy: Policy, results: Results) -> Cell:
    shares = policy.get("observation_modes") or {}
    if is_missing(shares.get("share_error")):
        return Cell(NOTHING)
    return Cell(f"{shares['share_error']:.3f}", (f"floor {shares['share_error_floor']:.3f}",))


def _nfe_cell(policy: Policy, results: Results) -> Cell:
    count = policy.get("candidates") or 1
    return Cell(str(policy["nfe"]), (f"for {count} latents", "one executed") if count > 1 else ())


def _latency_cell(policy: Policy, results: Results) -> Cell:
    latency = policy.get("latency")
    if not latency:
        return Cell(NOTHING, ("not measured",))
    return Cell(number(latency["median_ms"]), (f"p95 {number(latency['p95_ms'])}", f"p99 {number(latency['p99_ms'])}"))


def _hz_cell(policy: Policy, results: Results) -> Cell:
    latency = policy.get("latency")
    return Cell(number(latency["hz"]) if latency else NOTHING)


def _speedup_cell(policy: Policy, results: Results) -> Cell:
    speedup = policy.get("speedup")
    if speedup is None or is_missing(speedup):
        return Cell(NOTHING)
    return Cell(f"{number(speedup)}×", *((("slower",), "worse") if speedup < 0.95 else ()))


def _distance_cell(policy: Policy, results: Results) -> Cell:
    fidelity, floor = policy.get("fidelity"), results.get("fidelity_floor")
    if not fidelity and floor and policy.get("is_reference_teacher"):
        return Cell(number(floor.get("energy_distance")), ("against itself",))
    if not fidelity:
        return Cell(NOTHING, ("not measured",))
    to, back = fidelity.get("chamfer_student_to_teacher"), fidelity.get("chamfer_teacher_to_student")
    floor_note = (f"floor {number(floor['energy_distance'])}",) if floor and results["kind"] != "run" else ()
    return Cell(number(fidelity.get("energy_distance")), (*floor_note, "Chamfer", f"{number(to)} / {number(back)}"))


def _off_support_cell(policy: Policy, results: Results) -> Cell:
    share = (policy.get("fidelity") or {}).get("off_support_share")
    floor = (results.get("fidelity_floor") or {}).get("off_support_share")
    return Cell(percent(share), () if is_missing(floor) else (f"floor {percent(floor)}",))


def _failures_cell(counted: Mapping[str, Any], results: Results) -> Cell:
    named = tuple(f"{name} {count}" for name, count in (counted.get("failures") or {}).items() if count)
    if refused := counted.get("refused_actions"):
        named += (f"refused actions {refused}, in {counted['episodes_with_refusals']} of {counted['episodes']} episodes",)
    return Cell(str(counted["episodes"] - counted["successes"]), named)


def _text(results: Results) -> Sequence[str]:
    if not results["measured_success"]:
        return ("Every policy sampled action chunks for the same recorded observations.",)
    return (
        "Every policy ran from the same stored starts. An episode that crashes, times out or leaves the table counts as failed "
        "and keeps the name of its failure.",
    )


def _notes(results: Results) -> Sequence[str]:
    it, busy = reference_name(results), busy_line(results)
    if not results["measured_success"]:
        return (busy,) if busy else ()
    return (
        *((busy,) if busy else ()),
        f"Red, “worse”: below the {it} beyond chance (exact McNemar p < 0.05, or an interval wholly below 0), or slower. "
        f"Amber, “lower” or “fewer”: below the {it}, but chance may explain it. Green, “better”: above the {it} by both the "
        "test and the interval.",
    )


RESULTS = Section("Results", table=main_table, text=_text, notes=_notes)
FURTHER = Section("Further results of every policy", table=further_table)
