"""Success by task: what is taken from eval_info.json, and the table that is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from distill.report.sections.by_task import task_table
from distill.report.tables import NOTHING
from distill.worlds.episode_files import task_rows


def info(**tasks: list[str]) -> dict[str, Any]:
    """An eval_info.json: per task the failures of its episodes, "" for a success."""
    return {"per_task": [
        {"task": task, "metrics": {"successes": [not name for name in failures], "failures": failures}}
        for task, failures in tasks.items()
    ]}  # fmt: skip


def test_every_task_has_its_own_rate_and_interval() -> None:
    rows = task_rows({"Oracle": info(close=[""] * 4, open=["", "", "hang", "hang"]), "Teacher": info(close=["crash"] * 4)})
    assert [row["label"] for row in rows] == ["Oracle", "Teacher"]
    close, opened = rows[0]["tasks"]
    assert (close["task"], close["successes"], close["episodes"], close["failures"]) == ("close", 4, 4, {})
    # Wilson: 2 of 4 at z = 1.96 is 0.5 +- z sqrt(0.25 / 4 + z^2 / 64) / (1 + z^2 / 4)
    assert (opened["success_low"], opened["success_high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert opened["failures"] == {"hang": 2}
    table = task_table({"tasks": rows})
    assert table is not None and [name for name, _ in table.columns] == ["Policy", "close", "open"]
    assert table.rows[0][2].text == "50.0 %" and table.rows[0][2].notes == ("15.0 % to 85.0 %", "2 of 4", "hang 2")
    assert table.rows[1][1].text == "0.0 %" and table.rows[1][2].text == NOTHING


def test_one_task_alone_needs_no_table() -> None:
    assert task_table({"tasks": task_rows({"Oracle": info(close=[""])})}) is None
    assert task_table({}) is None
