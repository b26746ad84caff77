"""How the results were produced: data, hardware, versions, command, every setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from distill.report.policies import Results
from distill.report.section import Section
from distill.report.tables import NOTHING, Table, fact_table, is_missing, percent


def made_table(results: Results) -> Table:
    """A row per fact; in a run's report also unknown ones, in others only known ones."""
    made, data = results["made"], results["data"]
    versions, simulated = made.get("packages") or {}, results.get("rlbench") or results.get("gym") or {}
    rows = [
        ("flow2one", str(made.get("version") or NOTHING)),
        ("Date", str(made.get("date", NOTHING))),
        ("Seed", str(made.get("seed", NOTHING))),
        ("Hardware", str(made.get("hardware", NOTHING))),
        ("Threads, number type", f"{made.get('threads', NOTHING)}, {made.get('dtype', NOTHING)}"),
        ("Processes", str(made.get("processes", NOTHING))),
        *(_run_data(results) if results["kind"] == "run" else _recorded_data(data)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or NOTHING),
    ]
    if simulated:
        told = ", ".join(f"{name} {value}" for name, value in simulated.items() if value not in ("", []))
        rows.append(("RLBench" if "rlbench" in results else "Environment", told))
    return fact_table(rows, ("What", "This run"))


def _run_data(results: Results) -> list[tuple[str, str]]:
    data = results["data"]
    return [
        ("Observed by the policies", _observed(results)),
        ("Demonstrations", f"{data.get('episodes', NOTHING)} episodes, {data.get('frames', NOTHING)} frames"),
        ("Teacher samples", _samples(data)),
        ("Modes of an observation's samples", _modes(data)),
    ]


def _recorded_data(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    features = ", ".join(f"{name} {shape}" for name, shape in data["features"].items())
    recorded = f"{data['frames']} frames of {data['observations_from']}, {data['for_training']} for training; {features}"
    rows = [("Recorded observations", recorded)]
    if data.get("observations") is not None:
        rows.append(("Teacher samples", _samples(data)))
    if data.get("observations_by_modes"):
        rows.append(("Modes of an observation's samples", _modes(data)))
    return rows


def _samples(data: Mapping[str, Any]) -> str:
    if data.get("observations") is None:  # no student is trained on them
        return NOTHING
    size = data.get("cache_bytes")
    return (
        f"{data['observations']} observations × {data.get('hypotheses_per_observation', NOTHING)} samples, "
        f"{data.get('cache_num_steps', NOTHING)} solver steps each"
        + ("" if is_missing(size) else f", {float(size) / 1e6:.1f} MB on disk")  # type: ignore[arg-type]
    )


def _observed(results: Results) -> str:
    """What the policies of the run observe, as text."""
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


def _modes(data: Mapping[str, Any]) -> str:
    """How many modes the cached observations have, and the share of near-duplicate samples."""
    counts = data.get("observations_by_modes") or []
    if not counts:
        return NOTHING
    shares = [f"{modes}: {percent(count / sum(counts))}" for modes, count in enumerate(counts, 1) if count]
    repeated = percent(data.get("repeated_share"))
    return f"{', '.join(shares)} of {sum(counts)} observations; {repeated} of the samples repeat an earlier one within 1 %"


def command_lines(results: Results) -> list[str]:
    """The command line that wrote the report."""
    return [str(line) for line in results["made"].get("commands") or []]


def config_lines(results: Results) -> list[str]:
    """Every setting with its value, defaults included, one per line."""
    return list(_flat(results["made"].get("config") or {}))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {json.dumps(value, ensure_ascii=False)}"


COMMANDS = Section("Command", lines=command_lines, code=True, level=3)
CONFIG = Section("Every setting of this run", lines=config_lines, code=True, level=3)
MADE = Section("How it was made", table=made_table)
