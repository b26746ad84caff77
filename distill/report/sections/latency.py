"""Latency of a policy call, and of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import figures
from distill.report.policies import Policy, Results
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import NOTHING, Cell, Table, number

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
        rows.append((Cell(policy["label"]), *(Cell(number(latency.get(key))) for key, _, _ in COLUMNS), calls))
    columns = (
        ("Policy", ""), *((title, meaning) for _, title, meaning in COLUMNS),
        ("Calls", "timed calls, after so many to warm up"),
    )  # fmt: skip
    return Table(columns, tuple(rows)) if rows else None


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


LATENCY = Section("Latency", table=latency_table, text=_text, notes=_notes, missing="Latency was not measured in this run.")
STAGES = Section(
    "Where the time goes", table=stage_table, pictures=stage_picture, text=_stages_text,
    missing="Times by stage were not measured.", level=3,
)  # fmt: skip
