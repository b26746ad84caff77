"""Success by task, of policies that were trained for several tasks at once: rows from their eval_info.json, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.report.tables import NOTHING, Cell, Table, percent


def task_table(results: Mapping[str, Any]) -> Table | None:
    """A row per policy, a column per task; None for a run with one task."""
    rows = results.get("tasks") or []
    names = list(dict.fromkeys(each["task"] for row in rows for each in row["tasks"]))
    if len(names) < 2:
        return None
    meaning = "share of its episodes that are solved, 95 % Wilson interval; failures by name"
    columns = (("Policy", "what was run"), *((name, meaning) for name in names))
    return Table(columns, tuple(_row(row, names) for row in rows))


def _row(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Cell, ...]:
    by_name = {each["task"]: each for each in row["tasks"]}
    return (Cell(row["label"]), *(_cell(by_name.get(name)) for name in names))


def _cell(figures: Mapping[str, Any] | None) -> Cell:
    if figures is None:
        return Cell(NOTHING)
    return Cell(percent(figures["successes"] / figures["episodes"]), (
        f"{percent(figures['success_low'])} to {percent(figures['success_high'])}",
        f"{figures['successes']} of {figures['episodes']}",
        *(f"{name} {count}" for name, count in figures["failures"].items()),
    ))  # fmt: skip
