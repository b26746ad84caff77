"""Latency of a policy call: by stage, in every run mode, and by the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import figures
from distill.report.policies import Policy, Results, best_ms, comparison_cell, default_student, reference_policy
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import NOTHING, Cell, Table, number, percent, success_cell

COLUMNS = (
    ("median_ms", "Median [ms]", "half of the calls take less"),
    ("p95_ms", "p95 [ms]", "95 of 100 calls take less"),
    ("p99_ms", "p99 [ms]", "99 of 100 calls take less"),
    ("hz", "Hz", "policy calls per second, 1 / median"),
    ("actions_per_second", "Actions/s", "actions per second: a call gives several, so this is not Hz"),
)
STAGE_MEANINGS = {
    "preprocess_ms": "from the raw observation to tensors on the device",
    "encode_ms": "the observation encoder; part of the head where an external policy has none of its own",
    "head_ms": "from the encoded observation to action chunks, every solver step included",
    "post_ms": "from the network's output to raw actions on the host",
    "read_ms": "the simulated cameras render one observation; not part of the call",
}


def _timed(results: Results) -> list[Policy]:
    return [policy for policy in results["policies"] if policy.get("latency")]


BUSY_P95, BUSY_LOAD = 1.5, 1.0
"""A p95 of this many medians, or a load average of this many per core, says that the machine was busy."""


def busy_line(results: Results) -> str:
    """A warning where the machine was busy while policies were timed; "" where it was not, or nothing was timed."""
    timed = [policy for policy in _timed(results) if policy["kind"] != "baseline"]
    worst = max(timed, key=_spread, default=None)
    if worst is None:
        return ""
    told, load = [], _load_per_core(results)
    if _spread(worst) >= BUSY_P95:
        told.append(f"p95 is {number(_spread(worst), 2)} times the median ({worst['label']})")
    if load is not None and load > BUSY_LOAD + 1 / results["made"]["timing"]["cores"]:
        told.append(f"the load average was {number(load, 2)} per core")
    if not told:
        return ""
    return f"Warning: the machine was busy while policies were timed: {' and '.join(told)}. Time them again on an idle machine."


def _spread(policy: Policy) -> float:
    return float(policy["latency"]["p95_ms"]) / float(policy["latency"]["median_ms"])


def _load_per_core(results: Results) -> float | None:
    timing = results["made"].get("timing") or {}
    loads = [timing[name] for name in ("load_before", "load_after") if timing.get(name) is not None]
    return max(loads) / timing["cores"] if loads else None


def _notes(results: Results) -> Sequence[str]:
    if not _timed(results):
        return ()
    timing, busy = results["made"].get("timing"), busy_line(results)
    if timing is None:
        machine = "How busy the machine was meanwhile was not recorded."
    else:
        loads = " and ".join(number(timing.get(name), 2) for name in ("load_before", "load_after"))
        machine = (f"Load average before and after: {loads} on {timing['cores']} usable cores; this process itself used "
                   f"{number(timing['own_share'], 2)} of them.")  # fmt: skip
    return (machine, *((busy,) if busy else ()))


def latency_table(results: Results) -> Table | None:
    """Every policy's times, or None when nothing was timed."""
    rows = []
    for policy in _timed(results):
        latency = policy["latency"]
        calls = Cell(str(latency.get("calls", NOTHING)), (f"after {latency.get('warmup', NOTHING)}",))
        reaction = Cell(number(reaction_ms(results, latency["median_ms"], latency)))
        rows.append((Cell(policy["label"]), *(Cell(number(latency.get(key))) for key, _, _ in COLUMNS), reaction, calls))
    columns = (
        ("Policy", ""), *((title, meaning) for _, title, meaning in COLUMNS),
        ("Reaction [ms]", "expected time from a change in the scene to the first action that takes account of it: half the "
         "time between two queries, the cameras' time, and the call"),
        ("Calls", "timed calls, after so many to warm up"),
    )  # fmt: skip
    return Table(columns, tuple(rows)) if rows else None


def reaction_ms(results: Results, call_ms: float, latency: Policy) -> float | None:
    """Expected reaction time [ms] of a policy whose call takes `call_ms`, in a loop that is queried every execution horizon.

    A change falls uniformly between two queries, so it waits for half an execution horizon (FASTER, arXiv 2603.19199).
    """
    executed = (results["made"].get("config") or {}).get("evaluate", {}).get("execution_horizon")
    if executed is None:
        return None
    return 1000 * float(results["task"]["dt_s"]) * executed / 2 + float(latency.get("read_ms") or 0.0) + call_ms


def stage_table(results: Results) -> Table | None:
    """The median of every stage of a call, and what the cameras take, where any policy has it; None without any."""
    times = [(policy["label"], {**(policy["latency"].get("stages") or {}), "read_ms": policy["latency"].get("read_ms")})
             for policy in _timed(results)]  # fmt: skip
    stages = [stage for stage in STAGE_MEANINGS if any(each.get(stage) for _, each in times)]
    if not stages:
        return None
    columns = (("Policy", ""), *((f"{stage.removesuffix('_ms')} [ms]", STAGE_MEANINGS[stage]) for stage in stages))
    return Table(columns, tuple((Cell(label), *(Cell(number(each.get(stage))) for stage in stages)) for label, each in times))


def stage_picture(results: Results, folder: Path) -> Sequence[Picture]:
    """A bar per policy with the time of each stage of a call."""
    if not any(policy["latency"].get("stages") for policy in _timed(results)):
        return []
    return [Picture(data_uri(figures.latency_stages(results["policies"])), "latency of one policy call by stage")]


def _text(results: Results) -> Sequence[str]:
    where = " in one process" if results["kind"] == "run" else ""
    return (
        "One observation at a time, already on the host, device synchronised, warm-up left out, policies timed in turn"
        f"{where}.",
    )


def _stages_text(results: Results) -> Sequence[str]:
    return (
        "Medians of the stages, of the same calls as above. The stages of one call add up to it; their medians need not add up "
        "to the median of the whole call.",
    )


def amdahl_lines(results: Results) -> Sequence[str]:
    """What the default student's call is made of, and what no faster head can go below; none without times by stage."""
    student, teacher = default_student(results), reference_policy(results)
    stages = ((student or {}).get("latency") or {}).get("stages") or {}
    if student is None or not stages:
        return ()
    read = float(student["latency"].get("read_ms") or 0.0)
    whole = read + sum(stages.values())
    names = {"preprocess_ms": "preprocessing", "encode_ms": "encoder", "head_ms": "head", "post_ms": "selection"}
    shares = [("reading", read), *((names[key], value) for key, value in stages.items())]
    told = ", ".join(f"{name} {percent(value / whole)}" for name, value in shares if value)
    left = whole - stages["head_ms"]
    line = (f"Of {number(whole)} ms from the cameras to the chunk of {student['label']}: {told}. With an infinitely fast head "
            f"the call would take {number(left)} ms")  # fmt: skip
    if teacher is None or not (teacher.get("latency") or {}).get("stages"):
        return (f"{line}.",)
    its = read + sum(teacher["latency"]["stages"].values())
    return (f"{line}: no student with this encoder can be more than {number(its / left)} times as fast as {teacher['label']}.",)


# -- run modes ------------------------------------------------------------------------------------------------------------


def _modes(results: Results) -> list[str]:
    return list(dict.fromkeys(name for policy in _timed(results) for name in policy["latency"].get("modes") or {}))


def modes_table(results: Results) -> Table | None:
    """Every policy's median in every run mode, and its fastest against the reference's fastest; None without modes."""
    modes, reference = _modes(results), reference_policy(results)
    if not modes:
        return None
    rows = []
    for policy in _timed(results):
        latency = policy["latency"]
        timed = [(latency.get("modes") or {}).get(name) for name in modes]
        cells = [Cell(number(each["median_ms"]), (_parity_note(each["parity"]),)) if each else Cell(NOTHING) for each in timed]
        fastest = best_ms(policy)
        ratio = f"{number(best_ms(reference) / fastest)}×" if reference and reference.get("latency") else NOTHING
        rows.append((Cell(policy["label"]), Cell(number(latency["median_ms"])), *cells,
                     Cell(latency.get("best_mode", "eager")), Cell(number(1000 / fastest)), Cell(ratio)))  # fmt: skip
    columns = (
        ("Policy", ""), ("eager [ms]", "PyTorch, with all checks"),
        *((f"{name} [ms]", "median; below it the largest difference from eager, in half ranges") for name in modes),
        ("Fastest", "the mode with the smallest median among those that agree with eager"), ("Hz", "1 / median of the fastest"),
        ("Speed-up", "the teacher's fastest mode divided by this policy's fastest mode"),
    )  # fmt: skip
    return Table(columns, tuple(rows))


def _parity_note(parity: Policy) -> str:
    return f"{parity['largest']:.0e}" if parity["holds"] else f"{parity['largest']:.0e}: too far, not used"


def pair_lines(results: Results) -> list[str]:
    """The default student's speed-up over the teacher at its most steps and at ten, both eager and both in their best mode."""
    student = default_student(results)
    teachers = [each for each in _timed(results) if each["kind"] == "teacher"]
    if student is None or not student.get("latency") or not teachers or not _modes(results):
        return []
    told = []
    for teacher in teachers:
        if teacher.get("is_reference_teacher") or teacher.get("num_steps") == 10:
            eager = float(teacher["latency"]["median_ms"]) / float(student["latency"]["median_ms"])
            best = best_ms(teacher) / best_ms(student)
            told.append(f"{teacher['label']}: {number(eager)}× eager against eager, {number(best)}× each in its fastest mode")
    return [f"{student['label']} against its teacher. {'; '.join(told)}."]


def _modes_text(results: Results) -> Sequence[str]:
    return ("The same calls by other programs on this machine, interleaved with the eager ones, with the same random numbers. "
            "The fair rival of a student is its teacher in the teacher's own fastest mode.",)  # fmt: skip


def _modes_notes(results: Results) -> Sequence[str]:
    left_out = (results["made"].get("timing") or {}).get("left_out") or {}
    reasons = [f"{name} ({reason})" for name, reason in left_out.items()]
    return (*pair_lines(results), *([f"Not timed: {'; '.join(reasons)}."] if reasons else []))


# -- samples --------------------------------------------------------------------------------------------------------------


def frontier_table(results: Results) -> Table | None:
    """Success and latency of the default student by the number of samples; None when only one number was evaluated."""
    rows = []
    for row in results.get("frontier") or ():
        latency = row["latency"]
        fastest = best_ms(row)
        mode = latency.get("best_mode", "eager")
        rows.append((Cell(str(row["samples"])), success_cell(row), comparison_cell(row, NOTHING),
                     Cell(f"{row['modes_reached']}/{row['modes_total']}"), Cell(number(latency["median_ms"])),
                     Cell(number(fastest), (mode,)), Cell(number(1000 / fastest))))  # fmt: skip
    columns = (
        ("Samples", "chunks that a query draws in its one network evaluation"), ("Success", "with its 95 % interval"),
        ("Against the teacher", "paired difference in percentage points"), ("Modes", "reached in solved episodes"),
        ("eager [ms]", "median of a whole call"), ("Fastest [ms]", "median in the fastest run mode"), ("Hz", "of the fastest"),
    )  # fmt: skip
    return Table(columns, tuple(rows)) if rows else None


def _frontier_text(results: Results) -> Sequence[str]:
    return ("One evaluation of the network makes all samples of a query, but more samples are more arithmetic. Choose the "
            "fewest that keep the success you need: --evaluate.selection-candidates.",)  # fmt: skip


LATENCY = Section("Latency", table=latency_table, text=_text, notes=_notes, missing="Latency was not measured in this run.")
STAGES = Section(
    "Where the time goes", table=stage_table, pictures=stage_picture, text=_stages_text, notes=amdahl_lines,
    missing="Times by stage were not measured.", level=3,
)  # fmt: skip
RUN_MODES = Section("Run modes", table=modes_table, text=_modes_text, notes=_modes_notes, level=3)
FRONTIER = Section("Samples against speed", table=frontier_table, text=_frontier_text, level=3)
