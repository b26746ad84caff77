"""Random episodes, written in every format that is read, come back equal: values, order, time, padding, units."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.specs import STATE
from tests.envs.recorded.writers import DEPTH_FRONT, FORMATS, FRONT, Recording

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install 'flow2one[test]'")
for module in ("zarr", "h5py", "pyarrow", "av"):
    pytest.importorskip(module)

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

NUMBERS = st.floats(-1e4, 1e4, width=32)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    sizes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    states, actions = ([draw(arrays(np.float32, (length, size), elements=NUMBERS)) for length in lengths] for size in sizes)
    images: list[np.ndarray] = []
    depth: list[np.ndarray] = []
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        images = [rng.integers(0, 256, (length, 4, 5, 3)).astype(np.uint8) for length in lengths]
        depth = [rng.integers(300, 3000, (length, 4, 5)).astype(np.uint16) for length in lengths]
        for each in depth:
            each[:, 0, 0] = 0  # unknown
    tasks = draw(st.lists(st.integers(0, 1), min_size=len(lengths), max_size=len(lengths)))
    return Recording(tuple(states), tuple(actions), draw(st.sampled_from([5, 10, 30])), tuple(images), tuple(depth),
                     tuple(tasks), ("lift it", "put it down"))  # fmt: skip


def window(episodes: tuple[np.ndarray, ...], lengths: tuple[int, ...], frame: int, steps: range, stride: int) -> np.ndarray:
    """By a plain loop: so many steps of `stride` frames from a frame of all, clamped to its episode."""
    ends = np.cumsum(lengths)
    episode = int(np.searchsorted(ends, frame, side="right"))
    at = frame - (int(ends[episode]) - lengths[episode])
    return np.stack([episodes[episode][min(max(at + stride * step, 0), lengths[episode] - 1)] for step in steps])


@settings(max_examples=20, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip
@given(made=recordings(), stride=st.integers(1, 3), steps=st.integers(1, 3), horizon=st.integers(1, 5))
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_is_read_back(name: str, made: Recording, stride: int, steps: int, horizon: int) -> None:
    if name == "our demonstrations":  # of a task's sizes and period
        made = Recording(tuple(np.resize(each, (len(each), 2)) for each in made.states),
                         tuple(np.resize(each, (len(each), 2)) for each in made.actions), 20)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        recorded = open_recorded(FORMATS[name](Path(folder) / "set", made)).at_period(stride / made.fps)
        frames = np.arange(len(recorded))[::-1]
        assert recorded.episodes == made.lengths and recorded.action_size == made.actions[0].shape[1]
        if name.startswith("zarr") and max(made.lengths) == 1:  # stamps of single frames tell no period
            assert recorded.dt_s == pytest.approx(stride / made.fps)
            recorded = recorded.at_period(stride / made.fps)
        seen, chunks = recorded.read(frames, steps), recorded.actions(frames, horizon)
        used = recorded.clock.stride
        history, future = range(1 - steps, 1), range(horizon)
        for row, frame in enumerate(frames.tolist()):
            np.testing.assert_array_equal(seen[STATE][row], window(made.states, made.lengths, frame, history, used))
            np.testing.assert_array_equal(chunks[row], window(made.actions, made.lengths, frame, future, used))
            if FRONT in seen:
                pixels = window(made.images, made.lengths, frame, history, used).astype(np.float32) / np.float32(255)
                np.testing.assert_array_equal(seen[FRONT][row], pixels.transpose(0, 3, 1, 2))
            if DEPTH_FRONT in seen:
                raw = window(made.depth, made.lengths, frame, history, used).astype(np.float32)
                np.testing.assert_allclose(seen[DEPTH_FRONT][row, :, 0], np.where(raw == 0, np.nan, raw / 1000), rtol=1e-6)
        assert (FRONT in seen) == bool(made.images and name != "our demonstrations")
        assert (DEPTH_FRONT in seen) == bool(made.depth and name.startswith(("zarr", "zip", "HDF5")))
        if max(made.lengths) > 1 or not name.startswith("z"):
            assert used == stride and recorded.dt_s == pytest.approx(stride / made.fps, rel=1e-6)
        if name.startswith("LeRobot"):
            told = [made.words[made.tasks[episode]] for episode in recorded.episode_index(frames).tolist()]
            assert recorded.instructions(frames) == told
