"""What the rollouts in a moving world say: rows from their results, and the table and sentence of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.evaluation.real_time import CONDITIONS
from distill.evaluation.statistics import mcnemar_p, paired_difference, wilson_interval
from distill.report.tables import NOTHING, Cell, Table, number, p_value, percent, points


def moving_rows(results: Sequence[Mapping[str, Any]], labels: Mapping[str, str], student: str) -> list[dict[str, Any]]:
    """One row per time and policy, in that order; `results`: the policies' result.json, `student` the default one's name.

    Per condition (calm, disturbed): successes, their Wilson interval, failures by name, and the success of the student minus
    that of this policy at the same time, paired over the starts. reaction: mean over the episodes that were disturbed and
    in which an answer was carried out; `disturbed_episodes` and `answered_episodes` say how many.
    """
    by_policy = {result["policy"]: result for result in results}
    rows = []
    for place in range(len(by_policy[student]["times"])):
        against = by_policy[student]["times"][place]
        for name, result in by_policy.items():
            time, step_ms = result["times"][place], 1000 * result["dt_s"]
            answers = [each["reaction_steps"] for each in time["disturbed"] if each["reaction_steps"] is not None]
            rows.append({
                "policy": name, "label": labels.get(name, name), "is_default_student": name == student,
                "scale": time["scale"], "latency_ms": time["latency_ms"], "delay_steps": time["delay_steps"],
                "period_steps": time["period_steps"],
                "reaction_steps": float(np.mean(answers)) if answers else None,
                "reaction_ms": float(np.mean(answers)) * step_ms if answers else None,
                "disturbed_episodes": sum(each["moved_at"] is not None for each in time["disturbed"]),
                "answered_episodes": len(answers),
                **{condition: _condition(time[condition], None if name == student else against[condition])
                   for condition in CONDITIONS if condition in time},
            })  # fmt: skip
    return rows


def _condition(episodes: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    success = np.array([each["success"] for each in episodes])
    low, high = wilson_interval(int(success.sum()), len(success))
    row: dict[str, Any] = {
        "episodes": len(success), "successes": int(success.sum()), "success_rate": float(success.mean()),
        "success_low": low, "success_high": high,
        "failures": dict(Counter(each["failure"] for each in episodes if not each["success"])),
        "student_difference": None, "student_low": None, "student_high": None, "mcnemar_p": None,
    }  # fmt: skip
    if against is not None:
        students = np.array([each["success"] for each in against])
        row["student_difference"], row["student_low"], row["student_high"] = paired_difference(students, success)
        row["mcnemar_p"] = mcnemar_p(students, success)
    return row


def moving_table(results: Mapping[str, Any]) -> Table | None:
    """Success against compute budget, or None where it was not asked for."""
    moving = results.get("moving")
    if not moving or not moving["rows"]:
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
    return Table(columns, tuple(_row(row) for row in moving["rows"]))


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


def moving_line(results: Mapping[str, Any]) -> str:
    """How the rollouts in a moving world were made, in a few sentences; "" where there were none."""
    moving = results.get("moving")
    if not moving:
        return ""
    ms, chosen = 1000 * moving["dt_s"], moving["selection"]
    choice = (
        f" Of the {chosen['candidates']} plans of a call the student follows the one nearest to what is left of its last plan "
        f"(temporal consistency), and forgets that one every {chosen['forget_every']} calls."
    ) if chosen["kind"] == "temporal_consistency" else ""
    return (
        f"Disturbance: {moving['disturbance']} The world goes on at its {number(1 / moving['dt_s'])} Hz clock while a policy "
        f"computes: the last plan is followed, the actions of the new one whose time has passed are skipped, and where a plan "
        f"runs out its last target is held. A policy is asked every {moving['every_steps']} control steps of {number(ms)} ms; "
        f"one that is too slow for that, every {number(moving['patience'])} times the steps that it takes to answer. The first "
        "plan is there when the clock starts. All policies meet the same disturbances." + choice
    )
