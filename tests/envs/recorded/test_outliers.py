"""One sample does not set the scale: glitches are found and left out, movements stay, and constants come out exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.outliers import find_outliers, robust_range, without_diverged
from envs.specs import STATE
from tests.envs.recorded.writers import FORMATS, walk

ENDS = np.array([100, 200])


def waves(seed: int = 0) -> np.ndarray:
    steps = np.arange(200)
    return np.stack([np.sin(steps / 9), 40 * np.cos(steps / 7)], 1) + 0.01 * np.random.default_rng(seed).normal(size=(200, 2))


@pytest.mark.parametrize("frames", [[50], [50, 51], [0], [199], [99], [100], [20, 60, 140]])
@pytest.mark.parametrize("value", [1e4, -300.0, 65535.0])
def test_a_reading_that_jumps_away_and_back_is_a_glitch(frames: list[int], value: float) -> None:
    values = waves()
    values[frames, 1] = value
    found = find_outliers(STATE, values, ENDS)
    assert sorted(each for row in found for each in range(row.first, row.last + 1)) == frames
    assert all(row.is_glitch and row.column == 1 and row.value == value for row in found)
    assert f"frame {frames[0]}" in found[0].said() or f"frames {frames[0]} .." in found[0].said()


def test_movements_events_and_constants_are_no_glitches() -> None:
    assert find_outliers(STATE, waves(), ENDS) == []
    rare = waves()
    rare[:, 0] = 0.01 * np.random.default_rng(1).normal(size=200)  # a wrist that is turned once
    rare[120:150, 0] = 3 * np.sin(np.arange(30) / 29 * np.pi)
    assert [row.is_glitch for row in find_outliers(STATE, rare, ENDS)] in ([], [False])
    gripper = np.zeros((200, 1))
    gripper[80:100] = 1
    assert find_outliers(STATE, gripper, ENDS) == []
    button = np.zeros((200, 1))
    button[[10, 99, 150, 199]] = 1  # always the same
    assert find_outliers(STATE, button, ENDS) == []
    assert find_outliers(STATE, np.full((200, 3), 0.1), ENDS) == []


def test_a_range_is_not_set_by_few_values_and_a_constant_is_itself() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(-1, 1, 1000), np.full(1000, 0.1), (np.arange(1000) % 50 == 0).astype(float)], 1)
    values[3, 0] = 7.0
    low, high = robust_range(values)
    assert low[0] >= -1 and 1 <= high[0] <= 2.1
    assert low[1] == high[1] == 0.1
    assert (low[2], high[2]) == (0.0, 1.0)  # a gripper that is rarely closed
    chunks = rng.normal(size=(200, 8, 3))
    chunks[17] = 1e5
    assert np.flatnonzero(~without_diverged(chunks)).tolist() == [17]
    assert without_diverged(rng.normal(size=(200, 8, 3))).all()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "our demonstrations"])
def test_in_every_format_a_glitch_is_named_and_its_frame_is_not_used(tmp_path: Path, name: str) -> None:
    for module in ("zarr", "h5py", "pyarrow"):
        pytest.importorskip(module)
    made = walk(5, 20)
    made.states[2][7, 1] = 1e4
    recorded = open_recorded(FORMATS[name](tmp_path / "set", made))
    assert np.flatnonzero(~recorded.usable).tolist() == [47]
    assert any("observation.state[1] is 10000 in frame 47" in line for line in recorded.opened_as())
    assert recorded.ranges(STATE)[1]["high"] < 1.1
    windows = recorded.split(observation_steps=3)
    assert not set(np.concatenate(list(windows.values())).tolist()) & {47, 48, 49}  # nor where it is in a window


def test_what_jumps_all_the_time_is_what_it_measures(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    made = walk(5, 40)
    for episode in made.states:
        episode[::9, 0] = 50.0 + np.arange(len(episode[::9]))  # a force at each contact
    recorded = open_recorded(FORMATS["zarr 2"](tmp_path / "set", made))
    assert recorded.usable.all() and any("jump far out in more than" in line for line in recorded.notes)
