"""The wall time of every stage, and what distilling cost relative to the teacher's training."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.policies import Results
from distill.report.section import Section
from distill.report.tables import Table, distilling_line, duration, fact_table


def wall_table(results: Results) -> Table | None:
    """The wall time of every stage; None when not measured."""
    walls = results["made"].get("wall_s") or {}
    rows = [(str(stage), duration(seconds)) for stage, seconds in walls.items()]
    return fact_table(rows, ("Stage", "Wall time")) if rows else None


def _notes(results: Results) -> Sequence[str]:
    if results["kind"] != "run":
        return ()
    line = distilling_line(results)
    if not line:
        return ("What distilling cost in processor time was not measured in this run.",)
    return (f"{line[0].upper()}{line[1:]}.",)


WALL_TIME = Section(
    "Wall time", table=wall_table, notes=_notes, missing="Wall times were not measured in this run.", level=3
)
