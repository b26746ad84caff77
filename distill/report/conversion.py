"""The report of a conversion or a comparison: report.json, report.md, and report.html, which opens offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.report import figures, tables
from distill.report.data import dimensions_table, ranges_table, recording_table
from distill.report.page import data_uri, md, md_table, strict_json, template
from distill.report.tables import NOTHING, Cell, Policy, Table, number, percent, points
from distill.store.manifest import write_bytes

REFERENCE = {"conversion": "teacher", "comparison": "first policy"}


def write_outside_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the three files into `folder`. results: `distill.stages.outside_results.collect_outside`."""
    clean = strict_json(results)
    text = json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("report.json", text), ("report.md", _markdown(clean)), ("report.html", _html(clean))):
        write_bytes(folder / name, content.encode())


def title(results: Mapping[str, Any]) -> str:
    """What came out, in a sentence."""
    reference = tables.reference_teacher(results)
    student = tables.default_student(results)
    assert reference is not None
    if student is None:
        return f"{len(results['policies'])} policies on the same observations, compared with {reference['label']}"
    speed = student["speedup"]
    faster = f"{number(speed)} times as fast as" if speed >= 1 else f"{number(1 / speed)} times as slow as"
    said = f"One network evaluation instead of {reference['nfe']}, {faster} the teacher"
    if not results["measured_success"]:
        return said
    mine, its = percent(student["success_rate"]), percent(reference["success_rate"])
    return f"{said}; it solves {mine} of the episodes, the teacher {its}"


def lead(results: Mapping[str, Any]) -> list[str]:
    """What must be known to read it, a line each."""
    reference, student, floor = tables.reference_teacher(results), tables.default_student(results), results["fidelity_floor"]
    assert reference is not None
    data, lines = results["data"], []
    if student is not None:
        distance, outside = (student["fidelity"][name] for name in ("energy_distance", "outside_share"))
        own = floor["outside_share"]
        lines += [
            f"Sets of plans: the student's energy distance to the teacher's is {number(distance)}; the teacher's own, drawn "
            f"again, is {number(floor['energy_distance'])}. {percent(outside)} of its plans lie outside of what the teacher "
            f"draws; of the teacher's own {percent(own)}.",
            f"It was distilled from {data['hypotheses_per_observation']} plans for each of {data['observations']} "
            "observations, " + ("beginning with the teacher's weights." if student["warm_start"] else
                                "beginning with nothing: a foreign network's weights are not taken over."),
        ]  # fmt: skip
    if not results["measured_success"]:
        lines.append("Success was not measured: that needs a task to carry plans out in (--task). Plans that are like the "
                     "teacher's are no proof of success.")  # fmt: skip
    for each in results["adapters"]:
        where = "encoder and head timed apart" if each["separable"] else "timed as a whole"
        lines.append(f"{each['label']}: {each['kind']} in a process of its own (Python {each['python']}, torch "
                     f"{each['torch']}, {each['device']}), {where} there; the way to that process is not counted.")  # fmt: skip
    return lines


def main_table(results: Mapping[str, Any]) -> Table:
    """A row for each policy."""
    what = REFERENCE[results["kind"]]
    success = (
        ("Success", "share of episodes solved, 95 % Wilson interval"),
        (f"Against the {what}", "paired difference in percentage points, 95 % bootstrap interval, exact McNemar p"),
        ("Modes", "distinct ways taken in successful episodes, of those there are"),
        ("Entropy", "how evenly the modes are used: 1 all alike, 0 only one"),
    )
    columns = (
        ("Policy", ""), *(success if results["measured_success"] else ()),
        ("Set distance", f"energy distance to fresh samples of the {what}; the floor is those against each other"),
        ("Outside", f"share of plans farther from all of the {what}'s than these are from each other, and than 1 %"),
        ("Mode shares", "where an observation has several ways: half the summed differences of their shares; and its floor"),
        ("NFE", "network evaluations for one decision"), ("Time [ms]", "median of a whole decision; 95th and 99th percentile"),
        ("Hz", "decisions per second, 1 / median"), ("Speed-up", f"the {what}'s median time / this one's"),
        ("Parameters", "numbers in its networks"),
    )  # fmt: skip
    return Table(columns, tuple(_row(policy, results) for policy in results["policies"]))


def _row(policy: Policy, results: Mapping[str, Any]) -> tuple[Cell, ...]:
    floor, fidelity, latency = results["fidelity_floor"], policy["fidelity"], policy["latency"]
    reference, modes = policy["is_reference_teacher"], policy["observation_modes"]
    mark = "teacher" if reference else "student" if policy["is_default_student"] else ""
    shares = Cell(NOTHING)
    if modes.get("share_error") is not None:
        shares = Cell(f"{modes['share_error']:.3f}", (f"floor {modes['share_error_floor']:.3f}",))
    count = policy["parameters"]
    candidates = (f"of {policy['candidates']} latents at once",) if policy["candidates"] > 1 else ()
    return (
        Cell(policy["label"], ("reference",) if reference else (), mark),
        *(_success(policy) if results["measured_success"] else ()),
        Cell(number(fidelity["energy_distance"]), (f"floor {number(floor['energy_distance'])}",)),
        Cell(percent(fidelity["outside_share"]), (f"floor {percent(floor['outside_share'])}",)), shares,
        Cell(str(policy["nfe"]), candidates),
        Cell(number(latency["median_ms"]), (f"p95 {number(latency['p95_ms'])}", f"p99 {number(latency['p99_ms'])}")),
        Cell(number(latency["hz"])), Cell(f"{number(policy['speedup'])}×"), Cell(NOTHING if count is None else f"{count:,}"),
    )  # fmt: skip


def _success(policy: Policy) -> tuple[Cell, ...]:
    against, tone = Cell("reference"), tables.comparison(policy)
    if tone != "none":
        interval = f"{points(policy['difference_low'])} to {points(policy['difference_high'])}"
        colour = {"worse": "worse", "lower": "lower", "better": "better"}.get(tone, "")
        against = Cell(points(policy["difference"]), (interval, tables.p_value(policy["mcnemar_p"])), colour)
    low, high = percent(policy["success_low"]), percent(policy["success_high"])
    return (
        Cell(percent(policy["success_rate"]), (f"{low} to {high}", f"{policy['successes']} of {policy['episodes']}")),
        against, Cell(f"{policy['modes_reached']}/{policy['modes_total']}"), Cell(number(policy.get("entropy"))),
    )  # fmt: skip


def stages_table(results: Mapping[str, Any]) -> Table:
    """Where the time of a decision goes."""
    columns = (("Policy", ""), ("To tensors [ms]", ""), ("Encoder [ms]", "all is in the head where an adapter has no encode"),
               ("Head [ms]", ""), ("To actions [ms]", ""))  # fmt: skip
    return Table(columns, tuple(
        (Cell(policy["label"]), *(Cell(number(value)) for value in policy["latency"]["stages"].values()))
        for policy in results["policies"]
    ))  # fmt: skip


def choice_table(results: Mapping[str, Any]) -> Table | None:
    """Every checkpoint of the students, and which was taken."""
    rows = [(policy["label"], each) for policy in results["policies"] for each in policy.get("validation") or ()]
    if not rows:
        return None
    names = [name for name in rows[0][1] if name not in ("step", "chosen")]
    show = {name: percent if name in ("success_rate", "outside_share") else number for name in names}
    what = "on observations or starts that nothing else looks at"
    columns = (("Policy", ""), ("Step", "training step of the checkpoint"),
               *((name.replace("_", " ").capitalize(), what) for name in names), ("Chosen", ""))  # fmt: skip
    return Table(columns, tuple(
        (Cell(label), Cell(str(each["step"])), *(Cell(show[name](each[name])) for name in names),
         Cell("chosen" if each["chosen"] else "")) for label, each in rows
    ))  # fmt: skip


def made_table(results: Mapping[str, Any]) -> Table:
    made, data = results["made"], results["data"]
    features = ", ".join(f"{name} {shape}" for name, shape in data["features"].items())
    rows = [
        ("Date", made["date"]), ("Seed", str(made["seed"])), ("Hardware", made["hardware"]),
        ("Threads, number type, processes", f"{made['threads']}, {made['dtype']}, {made['processes']}"),
        ("Observations", f"{data['frames']} frames of {data['observations_from']}, {data['for_training']} for training; "
                         + features),
        ("Versions", ", ".join(f"{name} {version}" for name, version in made["packages"].items())),
    ]  # fmt: skip
    if data["observations"] is not None:
        drawn = f"{data['observations']} observations × {data['hypotheses_per_observation']} plans"
        size = f"{data['cache_bytes'] / 1e6:.1f} MB on disk"
        rows.insert(5, ("Teacher samples", f"{drawn}, {data['cache_num_steps']} solver steps each, {size}"))
    return Table((("What", ""), ("This run", "")), tuple((Cell(name), Cell(value)) for name, value in rows))


def _sections(results: Mapping[str, Any]) -> list[tuple[str, Table | None]]:
    return [
        ("Results", main_table(results)), ("Fidelity of the sets", tables.fidelity_table(results)),
        ("Errors in the actions' own units", dimensions_table(results)),
        ("Latency", tables.latency_table(results)), ("Where the time goes", stages_table(results)),
        ("Choice of checkpoints", choice_table(results)), ("Data", recording_table(results["data"]["recording"])),
        ("Ranges of the data", ranges_table(results["data"]["recording"])), ("How it was made", made_table(results)),
        ("Wall time", tables.wall_table(results)),
    ]  # fmt: skip


def _markdown(results: Mapping[str, Any]) -> str:
    parts = [f"# {md(results['run'])}: {results['kind']}", f"**{md(title(results))}.**"]
    parts.append("\n".join(f"- {md(line)}" for line in lead(results)))
    for name, table in _sections(results):
        parts += [f"## {name}", md_table(table)] if table else []
    parts += ["## Commands", "\n".join(f"    {line}" for line in results["made"]["commands"])]
    return "\n\n".join(parts) + "\n"


def _html(results: Mapping[str, Any]) -> str:
    curves = results["curves"]
    return template("outside.html.j2").render(
        results=results, title=title(results), lead=lead(results), sections=_sections(results),
        stages=data_uri(figures.latency_stages(results["policies"])),
        curves=data_uri(figures.training_curves(curves)) if any(curves.values()) else "",
    )  # fmt: skip
