"""Real-time evaluation: success when the simulation goes on while a policy computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report import figures
from distill.report.policies import Results
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import NOTHING, Cell, Table, interval, number, p_value, percent, points, success_cell

SELECTIONS = {
    "temporal_consistency": "Of the {candidates} samples of a call the student executes the one nearest to the unexecuted "
                            "rest of its last chunk (temporal consistency), and forgets that chunk every {forget_every} calls.",
    "kept_latent": "The student keeps one latent from call to call, and draws a new one every {forget_every} calls.",
    "outlier_rejection": "The student executes the first of {candidates} samples that is not an outlier.",
}  # fmt: skip
"""How the student chooses among its samples, by the kind of selection; with one sample there is no choice."""


def real_time_table(results: Results) -> Table | None:
    """Success at every latency of a policy call, or None where there were no real-time rollouts."""
    measured = results.get("real_time")
    if not measured or not measured["rows"]:
        return None
    columns = (
        ("Latency", "of a policy call; stated: the same for all policies; measured: each policy's own one times a factor"),
        ("Policy", ""),
        ("Control delay [steps]", "control steps from an observation to the first executed action of its chunk; below: "
         " from one query of the policy to the next"),
        ("Success, disturbed", "share of episodes solved under the disturbance, 95 % Wilson interval"),
        ("Student against it", "success of the default student minus this policy's at the same latency, under the disturbance, "
         "in percentage points; paired: 95 % bootstrap interval, exact McNemar p"),
        ("Reaction [ms]", "mean time from the onset of the disturbance to the first executed action of a chunk computed from a "
         "later observation; below: in control steps, and in how many of the disturbed episodes"),
        ("Collisions", "disturbed episodes that ended in a collision"),
        ("Other failures", "disturbed episodes that failed otherwise, by cause"),
        ("Success, calm", "the same without the disturbance: what the control delay costs by itself; below: the student's "
         "success minus this policy's"),
    )  # fmt: skip
    return Table(columns, tuple(_row(row) for row in measured["rows"]))


def _row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    disturbed, calm, gap = row["disturbed"], row["calm"], row["calm"]["student_difference"]
    collisions = disturbed["failures"].get("collision", 0)
    others = [f"{name} {count}" for name, count in disturbed["failures"].items() if count and name != "collision"]
    calm_ends = interval(calm["success_low"], calm["success_high"])
    return (
        Cell(stated_or_measured(row), (f"{number(row['latency_ms'])} ms",)),
        Cell(row["label"], (), "student" if row["is_default_student"] else "teacher"),
        Cell(str(row["delay_steps"]), (f"a query every {row['period_steps']}",)),
        success_cell(disturbed),
        _against(disturbed),
        Cell(number(row["reaction_ms"]), (f"{number(row['reaction_steps'])} steps",
                                          f"{row['answered_episodes']} of {row['disturbed_episodes']}")),
        Cell(str(collisions)),
        Cell(str(disturbed["episodes"] - disturbed["successes"] - collisions), tuple(others)),
        Cell(percent(calm["success_rate"]), (calm_ends, *((f"student {points(gap)}",) if gap is not None else ()))),
    )  # fmt: skip


def stated_or_measured(row: Mapping[str, Any]) -> str:
    """Where a row's latency comes from."""
    return "stated" if row["scale"] is None else f"measured × {number(row['scale'])}"


def _against(disturbed: Mapping[str, Any]) -> Cell:
    if disturbed["student_difference"] is None:
        return Cell(NOTHING)
    low, high, p = disturbed["student_low"], disturbed["student_high"], disturbed["mcnemar_p"]
    tone = "better" if low > 0 and p < 0.05 else "worse" if high < 0 and p < 0.05 else ""
    return Cell(points(disturbed["student_difference"]), (f"{points(low)} to {points(high)}", p_value(p)), tone)


def real_time_line(results: Results) -> str:
    """How the real-time rollouts were made, in a few sentences; "" where there were none."""
    measured = results.get("real_time")
    if not measured:
        return ""
    selection = measured["selection"]
    choice = SELECTIONS.get(selection["kind"], "").format(**selection)
    return (
        f"Disturbance: {measured['disturbance']} The simulation goes on at its {number(1 / measured['dt_s'])} Hz clock "
        "while a policy computes: meanwhile the last chunk is executed. The actions of a new chunk whose time has passed are "
        "skipped; where a chunk runs out, its last target is held. A policy is queried every "
        f"{measured['every_steps']} control steps of {number(1000 * measured['dt_s'])} ms; one that is too slow for that, "
        f"every {number(measured['delays_per_query'])} × its control delay. The first chunk is ready when the clock starts. "
        "All policies face the same disturbances. " + choice
    ).rstrip()


def _text(results: Results) -> Sequence[str]:
    return (real_time_line(results),)


def _picture(results: Results, folder: Path) -> Sequence[Picture]:
    rows = (results.get("real_time") or {}).get("rows") or []
    return [Picture(data_uri(figures.success_against_latency(rows)), "success over the time of a policy call")] if rows else []


REAL_TIME = Section(
    "Real-time evaluation", table=real_time_table, text=_text, pictures=_picture, kinds=("run",),
    missing="Real-time rollouts, in which the simulation goes on while a policy computes, were not part of this run "
    "(--real-time.latency-ms, --real-time.time-scales, --real-time.scale-to-clock).",
)  # fmt: skip
