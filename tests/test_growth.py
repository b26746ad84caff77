"""benchmarks/running.py: exponents by hand, and where they stop holding."""

from __future__ import annotations

import pytest
from running import growth


def test_a_power_is_found_and_holds_everywhere() -> None:
    assert growth([1, 2, 4, 8], [3, 12, 48, 192]) == {"exponent": 2.0, "holds_from": 1, "off": 0.0}


def test_a_fixed_cost_at_small_sizes_is_left_out() -> None:
    sizes = [1, 10, 100, 1000, 10000]
    found = growth(sizes, [50 + size for size in sizes], within=0.2)
    # with 60 at 10 the best line misses a point by more than a fifth
    assert found["holds_from"] == 100 and found["exponent"] == pytest.approx(0.913, abs=0.001) and found["off"] <= 0.2


def test_three_points_that_are_on_no_line_say_by_how_much() -> None:
    found = growth([1, 2, 4], [1, 10, 1])
    assert found["holds_from"] == 1 and found["exponent"] == pytest.approx(0.0) and found["off"] > 0.15
