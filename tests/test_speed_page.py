"""benchmarks/latency.py: the tables of docs/speed.md, from times made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # as the benchmark itself finds its neighbours
from benchmarks.latency import BEGIN, END, PAGE, RESULTS, tables


def _row(mode: str, slow: float, ten: float, one: float, eight: float) -> dict[str, Any]:
    medians = {"teacher, 50 steps": slow, "teacher, 10 steps": ten, "student, 1 sample": one, "student, 8 samples": eight,
               "network, 1 samples": one / 2, "network, 8 samples": eight / 1.25}  # fmt: skip
    return {"preset": "avoid", "mode": mode, "samples": 8,
            "times": {name: {"median_ms": value, "p99_ms": 1.5 * value} for name, value in medians.items()}}  # fmt: skip


def test_the_table_compares_eager_with_eager_and_each_in_its_own_fastest_mode() -> None:
    rows = [_row("eager", 80.0, 16.0, 2.0, 4.0), _row("a", 20.0, 4.0, 1.0, 2.5), _row("b", 30.0, 6.0, 0.5, 2.0)]
    rolled = {"run": "avoid-seed0", "mode": "a", "starts": 4, "eager": 3, "in_mode": 4, "difference": [0.25, 0.0, 0.75],
              "mcnemar_p": 1.0, "same_mode": 3}  # fmt: skip
    lines = tables({"rows": rows, "rollouts": [rolled]}).splitlines()
    assert lines[2:6] == [
        "| `avoid` | 1 | eager | 80.00 | 16.00 | 2.00 | 40.0 × | 8.0 × | 2.00 | 1.5 |",
        "| `avoid` | 1 | each its fastest (b) | 20.00 | 4.00 | 0.50 | 40.0 × | 8.0 × | 2.00 | 1.5 |",
        "| `avoid` | 8 | eager | 80.00 | 16.00 | 4.00 | 20.0 × | 4.0 × | 1.25 | 1.5 |",
        "| `avoid` | 8 | each its fastest (b) | 20.00 | 4.00 | 2.00 | 10.0 × | 2.0 × | 1.25 | 1.5 |",
    ]
    assert lines[-1] == "| `avoid-seed0` | a | 3 of 4 | 4 | +25.0 (+0.0 to +75.0) | 3 |"


@pytest.mark.skipif(not RESULTS.is_file(), reason="nothing was measured yet")
def test_the_page_shows_what_is_stored() -> None:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    assert rest.partition(END)[0].strip() == tables(json.loads(RESULTS.read_text())).strip()
