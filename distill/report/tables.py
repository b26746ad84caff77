"""What a run's results say in words and tables: made from the numbers alone, no files and no pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "–"
SURE = 0.05
"""The exact McNemar p below which a difference is not taken for chance."""

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """text: the number; notes: small lines under it; tone: "", "worse", "lower", "better", "teacher" or "student"."""

    text: str
    notes: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """columns: (header, what it means in one line); rows: one cell per column."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Headline:
    """tone: "worse", "lower", "same", "higher", "better" or "none"; title: one sentence; lead: what stands under it."""

    tone: str
    title: str
    lead: tuple[str, ...]


def percent(share: float | None) -> str:
    return NOTHING if _missing(share) else f"{100 * float(share):.1f} %"  # type: ignore[arg-type]


def points(share: float | None) -> str:
    """A difference of two shares in percentage points, always with its sign."""
    if _missing(share):
        return NOTHING
    value = round(100 * float(share), 1)  # type: ignore[arg-type]
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{abs(value):.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent and without cutting whole numbers: 0.0123, 2.10, 80.2, 1250."""
    if _missing(value):
        return NOTHING
    amount = float(value)  # type: ignore[arg-type]
    places = digits if amount == 0 else max(0, digits - 1 - math.floor(math.log10(abs(amount))))
    return f"{amount:.{min(places, 6)}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if _missing(value):
        return f"p {NOTHING}"
    return "p < 0.001" if float(value) < 0.001 else f"p = {float(value):.3f}"  # type: ignore[arg-type]


def duration(seconds: float | None) -> str:
    if _missing(seconds):
        return NOTHING
    total = float(seconds)  # type: ignore[arg-type]
    if total < 60:
        return f"{number(total)} s"
    minutes, rest = divmod(round(total), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def reference_teacher(results: Mapping[str, Any]) -> Policy | None:
    return next((policy for policy in results["policies"] if policy.get("is_reference_teacher")), None)


def default_student(results: Mapping[str, Any]) -> Policy | None:
    return next((policy for policy in results["policies"] if policy.get("is_default_student")), None)


def regression_student(results: Mapping[str, Any]) -> Policy | None:
    """The student that averages the teacher's plans, as a warning beside the default one (None when it is that one)."""
    named = [p for p in results["policies"] if "regression" in (p.get("objective"), p.get("name"))]
    return named[0] if named and not named[0].get("is_default_student") else None


def comparison(policy: Policy) -> str:
    """How a policy's success stands to the teacher's: worse, lower, same, higher, better; "none" when not paired.

    Doubt speaks for the teacher: worse when the exact test or the interval says so, better only when both do.
    """
    gap, p = policy.get("difference"), policy.get("mcnemar_p")
    if _missing(gap):
        return "none"
    if gap == 0:
        return "same"
    low, high = policy.get("difference_low"), policy.get("difference_high")
    test = not _missing(p) and float(p) < SURE  # type: ignore[arg-type]
    if gap < 0:  # type: ignore[operator]
        return "worse" if test or (not _missing(high) and high < 0) else "lower"  # type: ignore[operator]
    return "better" if test and not _missing(low) and low > 0 else "higher"  # type: ignore[operator]


def headline(results: Mapping[str, Any]) -> Headline:
    """The run in one sentence and a few more, whatever the numbers say."""
    teacher, student = reference_teacher(results), default_student(results)
    if teacher is None or student is None:
        missing = "reference teacher" if teacher is None else "default student"
        return Headline("none", f"This run has no {missing}, so there is nothing to compare", ())
    tone = comparison(student)
    mine, its = percent(student["success_rate"]), percent(teacher["success_rate"])
    title = {
        "worse": f"The student is worse than its teacher: it solves {mine} of the episodes, the teacher {its}",
        "lower": f"The student solves {mine} of the episodes, its teacher {its}: fewer, though chance could explain it",
        "same": f"The student solves {mine} of the episodes, exactly as its teacher",
        "higher": f"The student solves {mine} of the episodes, its teacher {its}: more, though chance could explain it",
        "better": f"The student is better than its teacher: it solves {mine} of the episodes, the teacher {its}",
        "none": f"The student solves {mine} of the episodes, its teacher {its} (not compared episode by episode)",
    }[tone]
    title += _speed_clause(student, ", but" if tone == "worse" else ";")
    if 0 < student["modes_reached"] < teacher["modes_reached"]:
        title += f"; it takes {student['modes_reached']} of {student['modes_total']} ways, "
        title += f"the teacher {teacher['modes_reached']}"
    lead = (_success_line(teacher, student), _speed_line(teacher, student), _modes_line(teacher, student))
    return Headline(tone, title, lead)


def _speed_clause(student: Policy, joint: str) -> str:
    speedup = student.get("speedup")
    if _missing(speedup):
        return "; their speed was not compared"
    if speedup >= 1.05:  # type: ignore[operator]
        return f"{joint} it decides {number(speedup)} times as fast"
    if speedup <= 0.95:  # type: ignore[operator]
        return f"; it is slower: one decision takes {number(1 / speedup)} times as long"  # type: ignore[operator]
    return "; it decides about as fast"


def _success_line(teacher: Policy, student: Policy) -> str:
    def one(policy: Policy) -> str:
        return (
            f"{policy['successes']} of {policy['episodes']} ({percent(policy['success_rate'])}, 95 % interval "
            f"{percent(policy['success_low'])} to {percent(policy['success_high'])})"
        )

    line = f"Success: teacher {one(teacher)}, student {one(student)}."
    if comparison(student) == "none":
        return line
    return (
        f"{line} On the same starts the student differs by {points(student['difference'])} percentage points "
        f"(95 % interval {points(student.get('difference_low'))} to {points(student.get('difference_high'))}, "
        f"exact McNemar test {p_value(student.get('mcnemar_p'))})."
    )


def _speed_line(teacher: Policy, student: Policy) -> str:
    work = f"network evaluations (NFE) for one decision: teacher {teacher['nfe']}, student {student['nfe']}"
    if not teacher.get("latency") or not student.get("latency"):
        return f"Speed: {work}. The time of a decision was not measured."
    mine, its = student["latency"], teacher["latency"]
    return (
        f"Speed: {work}. Median time of a decision: teacher {number(its['median_ms'])} ms "
        f"({number(its['hz'])} per second), student {number(mine['median_ms'])} ms ({number(mine['hz'])} per second)."
    )


def _modes_line(teacher: Policy, student: Policy) -> str:
    mine, its, total = student["modes_reached"], teacher["modes_reached"], student["modes_total"]
    verdict = "the same number" if mine == its else f"{abs(its - mine)} {'fewer' if mine < its else 'more'}"
    return (
        f"Diversity: of the {total} ways to solve the task (modes) the teacher took {its} and the student {mine}, "
        f"{verdict}; evenness (entropy, 1 is even): teacher {number(teacher.get('entropy'))}, "
        f"student {number(student.get('entropy'))}."
    )


def main_table(results: Mapping[str, Any]) -> Table:
    teacher, floor = reference_teacher(results), results.get("fidelity_floor")
    columns = (
        ("Policy", "what was run"),
        ("Success", "share of episodes solved, 95 % Wilson interval"),
        ("Against teacher", "paired difference in percentage points, 95 % bootstrap interval, exact McNemar p"),
        ("Modes", "distinct ways taken in successful episodes, of those there are"),
        ("Entropy", "how evenly the modes are used: 1 all alike, 0 only one"),
        ("Mode shares", "half the summed differences of the modes' shares from the teacher's, 0 is equal; the floor is what "
         "two runs of one policy would differ by on average. Per observation: of sets of plans, where a set has several modes"),
        ("Foreign", "share of decisions at which the observation is farther from every demonstrated one than 99 % of those "
         "are from each other (of another start)"),
        ("Switches", "share of replans at which the new plan goes another way than what was left of the last one, among "
         "those at which both name a way; – where none do, as when plans are carried out to their end"),
        ("Jerk [m/s³]", "root mean square jerk of the tool, mean over all episodes; less is smoother"),
        ("NFE", "network evaluations for one decision"),
        ("Time [ms]", "median of a whole decision; 95th and 99th percentile"),
        ("Hz", "decisions per second, 1 / median"),
        ("Speed-up", "teacher's median time / this one's"),
        ("Set distance", "energy distance to fresh teacher samples, and Chamfer to / from the teacher; 0 is perfect"),
        ("Failed", "failed episodes, and by the name of what happened"),
    )
    rows = tuple(_main_row(policy, teacher, floor) for policy in results["policies"])
    return Table(columns, (*_oracle_rows(results.get("oracle"), len(columns)), *rows))


def _oracle_rows(oracle: Mapping[str, Any] | None, columns: int) -> list[tuple[Cell, ...]]:
    """What no policy can be asked to surpass, where it was measured: the demonstrations themselves, replayed."""
    if not oracle:
        return []
    success = Cell(
        percent(oracle["successes"] / oracle["episodes"]),
        (f"{percent(oracle['success_low'])} to {percent(oracle['success_high'])}",
         f"{oracle['successes']} of {oracle['episodes']}"),
    )  # fmt: skip
    name = Cell("Oracle", ("the test starts' demonstrations, replayed by the same actions",))
    return [(name, success, *[Cell(NOTHING)] * (columns - 3), _failures_cell(oracle))]


def _main_row(policy: Policy, teacher: Policy | None, floor: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    latency = policy.get("latency")
    role = "reference teacher" if policy.get("is_reference_teacher") else policy["kind"]
    role = "baseline, nothing is trained" if policy["kind"] == "baseline" else role
    role = "default student" if policy.get("is_default_student") else role
    mark = "student" if policy.get("is_default_student") else "teacher" if policy.get("is_reference_teacher") else ""
    tone = comparison(policy)
    colour = {"worse": "worse", "lower": "lower", "better": "better"}.get(tone, "")
    if tone == "none":
        against = Cell("reference" if policy.get("is_reference_teacher") else NOTHING)
    else:
        interval = f"{points(policy.get('difference_low'))} to {points(policy.get('difference_high'))}"
        word = {"lower": "lower, may be chance", "higher": "higher, may be chance"}.get(tone, tone)
        against = Cell(points(policy["difference"]), (interval, p_value(policy.get("mcnemar_p")), word), colour)
    fewer = bool(teacher) and policy["modes_reached"] < teacher["modes_reached"]  # type: ignore[index]
    speedup = policy.get("speedup")
    slower = not _missing(speedup) and speedup < 0.95  # type: ignore[operator]
    return (
        Cell(policy["label"], (role, _parameters(policy)), mark),
        Cell(
            percent(policy["success_rate"]),
            (
                f"{percent(policy['success_low'])} to {percent(policy['success_high'])}",
                f"{policy['successes']} of {policy['episodes']}",
            ),
        ),
        against,
        Cell(f"{policy['modes_reached']}/{policy['modes_total']}", *((("fewer",), "lower") if fewer else ())),
        Cell(number(policy.get("entropy"))),
        _mode_shares_cell(policy),
        Cell(percent(policy.get("outside_observations"))),
        Cell(percent(policy.get("switch_rate"))),
        Cell(number(policy.get("jerk"))),
        Cell(str(policy["nfe"]), _candidates(policy)),
        _time_cell(latency),
        Cell(number(latency["hz"]) if latency else NOTHING),
        Cell(NOTHING if _missing(speedup) else f"{number(speedup)}×", *((("slower",), "worse") if slower else ())),
        _distance_cell(policy, floor),
        _failures_cell(policy),
    )


def _candidates(policy: Policy) -> tuple[str, ...]:
    count = policy.get("candidates") or 1
    return (f"of {count} latents at once, one plan chosen",) if count > 1 else ()


def _mode_shares_cell(policy: Policy) -> Cell:
    error, floor = policy.get("mode_share_error"), policy.get("mode_share_floor")
    told = policy.get("observation_modes") or {}
    here: tuple[str, ...] = ()
    if not _missing(told.get("share_error")):
        here = (f"per observation {told['share_error']:.3f}", f"floor {told['share_error_floor']:.3f}")
    if _missing(error):
        return Cell("reference" if policy.get("is_reference_teacher") else NOTHING, here)
    return Cell(f"{error:.3f}", (f"floor {floor:.3f}", *here))


def _time_cell(latency: Mapping[str, Any] | None) -> Cell:
    if not latency:
        return Cell(NOTHING, ("not measured",))
    return Cell(number(latency["median_ms"]), (f"p95 {number(latency['p95_ms'])}", f"p99 {number(latency['p99_ms'])}"))


def _distance_cell(policy: Policy, floor: Mapping[str, Any] | None) -> Cell:
    fidelity = policy.get("fidelity")
    if not fidelity and floor and policy.get("is_reference_teacher"):
        return Cell(number(floor.get("energy_distance")), ("against itself",))
    if not fidelity:
        return Cell(NOTHING, ("not measured",))
    to, back = fidelity.get("chamfer_student_to_teacher"), fidelity.get("chamfer_teacher_to_student")
    return Cell(number(fidelity.get("energy_distance")), ("Chamfer", f"{number(to)} / {number(back)}"))


def _failures_cell(policy: Policy) -> Cell:
    named = tuple(f"{name} {count}" for name, count in (policy.get("failures") or {}).items() if count)
    return Cell(str(policy["episodes"] - policy["successes"]), named)


FIDELITY: tuple[tuple[str, str, str, Callable[[float | None], str]], ...] = (
    ("chamfer_student_to_teacher", "Chamfer, to teacher",
     "mean distance of a sample to the nearest teacher sample; grows with strays", number),
    ("chamfer_teacher_to_student", "Chamfer, from teacher",
     "mean distance of a teacher sample to the nearest of these; grows with gaps", number),
    ("energy_distance", "Energy distance",
     "between the two distributions, mode weights included; 0 is equal, an estimate may be just below", number),
    ("precision", "Precision", "share of samples that lie among the teacher's", percent),
    ("recall", "Recall", "share of teacher samples that lie among these", percent),
    ("coverage", "Coverage", "share of teacher samples with one of these nearby", percent),
    ("outside_share", "Outside",
     "share of samples farther from every teacher sample than teacher samples are from each other, and than 1 % of half an "
     "action's range", percent),
)  # fmt: skip


def fidelity_table(results: Mapping[str, Any]) -> Table | None:
    """Distances of sets, or None when no policy has any. The floor is the teacher against itself."""
    rows = [(policy["label"], policy["fidelity"]) for policy in results["policies"] if policy.get("fidelity")]
    if not rows:
        return None
    if results.get("fidelity_floor"):
        rows.insert(0, ("Floor: teacher against itself", results["fidelity_floor"]))
    columns = (("Policy", ""), *((title, meaning) for _, title, meaning, _ in FIDELITY))
    own = ((reference_teacher(results) or {}).get("fidelity") or results.get("fidelity_floor") or {}).get("outside_share")

    def cell(key: str, value: float | None, show: Callable[[float | None], str]) -> Cell:
        if key != "outside_share" or _missing(value) or not own:
            return Cell(show(value))
        return Cell(show(value), (f"{number(value / own, 2)} × the teacher's own",))

    cells = tuple((Cell(label), *(cell(key, each.get(key), show) for key, _, _, show in FIDELITY)) for label, each in rows)
    return Table(columns, cells)


def latency_table(results: Mapping[str, Any]) -> Table | None:
    """Every policy's times, or None when nothing was timed."""
    rows = [policy for policy in results["policies"] if policy.get("latency")]
    if not rows:
        return None
    columns: tuple[tuple[str, str], ...] = (
        ("Policy", ""), ("Median [ms]", "half of the calls are faster"), ("p95 [ms]", "95 of 100 calls are faster"),
        ("p99 [ms]", "99 of 100 calls are faster"), ("Hz", "decisions per second, 1 / median"),
        ("Actions/s", "actions made per second: a decision holds several, so this is not Hz"),
        ("Calls", "timed calls, after so many for warming up"),
    )  # fmt: skip
    keys: tuple[str, ...] = ("median_ms", "p95_ms", "p99_ms", "hz", "actions_per_second")
    told = [policy["latency"].get("stages") or {} for policy in rows]
    stages = tuple(dict.fromkeys(key for each in told for key in each if each[key]))
    columns += tuple((f"{stage.removesuffix('_ms')} [ms]", "median of this stage of the call") for stage in stages)
    if any(policy["latency"].get("read_ms") for policy in rows):
        columns += (("read [ms]", "the simulated cameras give one observation; not part of the call"),)
        stages += ("read_ms",)
    cells = []
    for policy in rows:
        latency = policy["latency"]
        calls = Cell(str(latency.get("calls", NOTHING)), (f"after {latency.get('warmup', NOTHING)}",))
        timed = {**latency, **(latency.get("stages") or {})}
        cells.append((
            Cell(policy["label"]), *(Cell(number(timed.get(key))) for key in keys), calls,
            *(Cell(number(timed.get(stage))) for stage in stages),
        ))  # fmt: skip
    return Table(columns, tuple(cells))


def validation_table(results: Mapping[str, Any]) -> Table | None:
    """Every checkpoint that was rolled out on validation starts, or None."""
    columns = (
        ("Policy", ""), ("Step", "training step of the checkpoint"), ("Success", "on the validation starts"),
        ("Entropy", "evenness of the modes"), ("Chosen", "which one the report's numbers are of"),
    )  # fmt: skip
    rows = [
        (
            Cell(policy["label"]), Cell(str(each["step"])), Cell(percent(each["success_rate"])),
            Cell(number(each.get("entropy"))), Cell("chosen" if each.get("chosen") else ""),
        )
        for policy in results["policies"] for each in policy.get("validation") or ()
    ]  # fmt: skip
    return Table(columns, tuple(rows)) if rows else None


def made_table(results: Mapping[str, Any]) -> Table:
    """How the run was made: data, hardware, seeds, versions."""
    made, data = results["made"], results["data"]
    size, versions = data.get("cache_bytes"), made.get("packages") or {}
    rows: Sequence[tuple[str, str]] = (
        ("Date", str(made.get("date", NOTHING))),
        ("Seed", str(made.get("seed", NOTHING))),
        ("Hardware", str(made.get("hardware", NOTHING))),
        ("Threads, number type", f"{made.get('threads', NOTHING)}, {made.get('dtype', NOTHING)}"),
        ("Processes", str(made.get("processes", NOTHING))),
        ("Seen by the policies", _seen(results)),
        ("Demonstrations", f"{data.get('episodes', NOTHING)} episodes, {data.get('frames', NOTHING)} frames"),
        (
            "Teacher samples",
            NOTHING if data.get("observations") is None  # no student is made from them
            else f"{data['observations']} observations × "
            f"{data.get('hypotheses_per_observation', NOTHING)} plans, "
            f"{data.get('cache_num_steps', NOTHING)} solver steps each"
            + ("" if _missing(size) else f", {float(size) / 1e6:.1f} MB on disk"),
        ),
        ("Ways among an observation's samples", _ways(data)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or NOTHING),
    )
    simulated = results.get("rlbench") or {}
    if simulated:
        rows = (*rows, ("RLBench", ", ".join(f"{name} {value}" for name, value in simulated.items())))
    return Table((("What", ""), ("This run", "")), tuple((Cell(name), Cell(value)) for name, value in rows))


def _seen(results: Mapping[str, Any]) -> str:
    """What the policies of the run see, in words."""
    seen = results.get("observation")
    if not seen:
        return "the whole state"
    sources, (height, width) = seen["sources"], seen["image_size"]
    parts = [f"state ({', '.join(seen['state_names']) or 'all of it'})"] if "state" in sources else []
    views = " and ".join({"images": "colours", "depth": "depth"}[kind] for kind in ("images", "depth") if kind in sources)
    if views:
        parts.append(f"{views} of {', '.join(seen['cameras'])} ({height} × {width} pixels)")
    if "points" in sources:
        parts.append(f"{seen['num_points']} points{' with colours' if seen['colours'] else ''} of all cameras")
    return "; ".join(parts)


def _ways(data: Mapping[str, Any]) -> str:
    """How many-moded the cached observations are, and how many of their plans say nothing new."""
    ways = data.get("ways") or []
    if not ways:
        return NOTHING
    shares = [f"{count}: {percent(number / sum(ways))}" for count, number in enumerate(ways, 1) if number]
    repeated = percent(data.get("repeated_share"))
    return f"{', '.join(shares)} of {sum(ways)} observations; {repeated} of the plans repeat an earlier one within 1 %"


def wall_table(results: Mapping[str, Any]) -> Table | None:
    walls = results["made"].get("wall_s") or {}
    rows = tuple((Cell(str(stage)), Cell(duration(seconds))) for stage, seconds in walls.items())
    return Table((("Stage", ""), ("Wall time", "")), rows) if rows else None


def distilling_line(results: Mapping[str, Any]) -> str:
    """What the default student cost beside its teacher's training, in a sentence; "" where that was not measured."""
    cost, student = results.get("distilling") or {}, default_student(results)
    if student is None or _missing(cost.get("share")):
        return ""
    teacher, trained = float(cost["teacher_cpu_s"]), float(cost["students"][student["name"]])
    sampling = "" if _missing(cost.get("sample_cpu_s")) else f"sampling {cost['sample_cpu_s']:.0f} s + "
    return (
        f"distilling cost {100 * cost['share']:.0f} % of the teacher's training "
        f"({sampling}student {trained:.0f} s, teacher {teacher:.0f} s of processor time)"
    )


def _parameters(policy: Policy) -> str:
    """A baseline without a network has no parameters, only what it remembers."""
    count, what = policy.get("parameters"), "stored numbers" if policy["kind"] == "baseline" else "parameters"
    return f"{what} unknown" if count is None else f"{count:,} {what}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
