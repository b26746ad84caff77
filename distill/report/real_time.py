"""What the real-time rollouts say: the table and the sentences of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.report.tables import NOTHING, Cell, Table, number, p_value, percent, points


def real_time_table(results: Mapping[str, Any]) -> Table | None:
    """Success against compute budget, or None where it was not asked for."""
    told = results.get("real_time")
    if not told or not told["rows"]:
        return None
    columns = (
        ("Time given", "time of a policy call: stated, the same for all, or each policy's own measured one times a factor"),
        ("Policy", ""),
        ("Late [steps]", "control steps from an observation to the first action of the plan made from it, and from one "
         "question to the next"),
        ("Success, disturbed", "share of episodes solved while the world moves, 95 % Wilson interval"),
        ("Student against it", "success of the default student minus this policy's at the same time given, disturbed, in "
         "percentage points, paired: 95 % bootstrap interval, exact McNemar p"),
        ("Reaction [ms]", "from the begin of the disturbance to the first action of a plan that was made from an observation "
         "after it, mean; in control steps; in how many episodes of those disturbed"),
        ("Collisions", "disturbed episodes that ended in one"),
        ("Other failures", "disturbed episodes, by the name of what happened"),
        ("Success, calm", "the same without disturbance: what coming late costs by itself; the student minus this policy"),
    )  # fmt: skip
    return Table(columns, tuple(_row(row) for row in told["rows"]))


def _row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    disturbed, calm, gap = row["disturbed"], row["calm"], row["calm"]["student_difference"]
    others = [f"{name} {count}" for name, count in disturbed["failures"].items() if count and name != "collision"]
    return (
        Cell(time_given(row), (f"{number(row['latency_ms'])} ms",)),
        Cell(row["label"], (), "student" if row["is_default_student"] else "teacher"),
        Cell(str(row["delay_steps"]), (f"asked every {row['period_steps']}",)),
        Cell(percent(disturbed["success_rate"]),
             (_interval(disturbed), f"{disturbed['successes']} of {disturbed['episodes']}")),
        _against(disturbed),
        Cell(number(row["reaction_ms"]), (f"{number(row['reaction_steps'])} steps",
                                          f"{row['answered_episodes']} of {row['disturbed_episodes']}")),
        Cell(str(disturbed["failures"].get("collision", 0))),
        Cell(str(disturbed["episodes"] - disturbed["successes"] - disturbed["failures"].get("collision", 0)), tuple(others)),
        Cell(percent(calm["success_rate"]), (_interval(calm), *((f"student {points(gap)}",) if gap is not None else ()))),
    )  # fmt: skip


def _interval(condition: Mapping[str, Any]) -> str:
    return f"{percent(condition['success_low'])} to {percent(condition['success_high'])}"


def time_given(row: Mapping[str, Any]) -> str:
    return "stated" if row["scale"] is None else f"measured × {number(row['scale'])}"


def _against(disturbed: Mapping[str, Any]) -> Cell:
    if disturbed["student_difference"] is None:
        return Cell(NOTHING)
    low, high, p = disturbed["student_low"], disturbed["student_high"], disturbed["mcnemar_p"]
    tone = "better" if low > 0 and p < 0.05 else "worse" if high < 0 and p < 0.05 else ""
    return Cell(points(disturbed["student_difference"]), (f"{points(low)} to {points(high)}", p_value(p)), tone)


def real_time_line(results: Mapping[str, Any]) -> str:
    """How the real-time rollouts were made, in a few sentences; "" where there were none."""
    told = results.get("real_time")
    if not told:
        return ""
    ms, chosen = 1000 * told["dt_s"], told["selection"]
    choice = (
        f" Of the {chosen['candidates']} plans of a call the student follows the one nearest to what is left of its last plan "
        f"(temporal consistency), and forgets that one every {chosen['forget_every']} calls."
    ) if chosen["kind"] == "temporal_consistency" else ""
    return (
        f"Disturbance: {told['disturbance']} The world goes on at its {number(1 / told['dt_s'])} Hz clock while a policy "
        f"computes: the last plan is followed, the actions of the new one whose time has passed are skipped, and where a plan "
        f"runs out its last target is held. A policy is asked every {told['every_steps']} control steps of {number(ms)} ms; "
        f"one that is too slow for that, every {number(told['patience'])} times the steps that it takes to answer. The first "
        "plan is there when the clock starts. All policies meet the same disturbances." + choice
    )
