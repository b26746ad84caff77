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
    return ("Medians of the stages of a call. They need not add up to the median of the whole call.",)


LATENCY = Section("Latency", table=latency_table, text=_text, missing="Latency was not measured in this run.")
STAGES = Section(
    "Where the time goes", table=stage_table, pictures=stage_picture, text=_stages_text,
    missing="Times by stage were not measured.", level=3,
)  # fmt: skip
