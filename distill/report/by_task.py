"""Success by task, of policies that were trained for several tasks at once: rows from their eval_info.json, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill.evaluation.statistics import wilson_interval
from distill.report.tables import NOTHING, Cell, Table, percent


def task_rows(told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per policy and in it, per task, episodes, successes with their 95 % Wilson interval, and failures by name.

    told: the policies' ``eval_info.json`` by the name that the report gives them.
    """
    return [{"label": label, "tasks": [_figures(each) for each in info["per_task"]]} for label, info in told.items()]


def _figures(task: Mapping[str, Any]) -> dict[str, Any]:
    metrics = task["metrics"]
    successes, episodes = sum(metrics["successes"]), len(metrics["successes"])
    low, high = wilson_interval(successes, episodes)
    return {"task": task["task"], "episodes": episodes, "successes": successes, "success_low": low, "success_high": high,
            "failures": dict(Counter(name for name in metrics["failures"] if name))}  # fmt: skip


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
