"""Success by task, of policies that were trained for several tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.report.policies import Results
from distill.report.section import Section
from distill.report.tables import NOTHING, Cell, Table, success_cell


def task_table(results: Results) -> Table | None:
    """A row per policy, a column per task; None for a run with one task."""
    rows = results.get("tasks") or []
    names = list(dict.fromkeys(each["task"] for row in rows for each in row["tasks"]))
    if len(names) < 2:
        return None
    return Table((("Policy", ""), *((name, "") for name in names)), tuple(_row(row, names) for row in rows))


def _row(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Cell, ...]:
    by_name = {each["task"]: each for each in row["tasks"]}
    return (Cell(row["label"]), *(_cell(by_name.get(name)) for name in names))


def _cell(counted: Mapping[str, Any] | None) -> Cell:
    if counted is None:
        return Cell(NOTHING)
    return success_cell(counted, *(f"{name} {count}" for name, count in counted["failures"].items()))


def _text(results: Results) -> Sequence[str]:
    return ("Share of each task's episodes that are solved, with its 95 % Wilson interval; failures by their cause.",)


BY_TASK = Section("Success by task", table=task_table, text=_text, level=3)
