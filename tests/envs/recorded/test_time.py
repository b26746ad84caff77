"""Time is read from the data's own stamps: gaps, jitter, videos that are shifted, and policies at another rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.timing import Clock
from envs.specs import STATE
from tests.envs.recorded.writers import FRONT, Recording, film, lerobot, zarr_buffer

HERE = Path("set")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("av")
pytest.importorskip("zarr")


def ticking(episodes: int = 3, length: int = 12, fps: int = 10) -> Recording:
    """The state is (seconds, episode); every frame has a grey level of its own."""
    states = tuple(np.stack([np.arange(length) / fps, np.full(length, each)], 1).astype(np.float32) for each in range(episodes))
    images = tuple(np.stack([np.full((32, 32, 3), grey(each, step, length), np.uint8) for step in range(length)])
                   for each in range(episodes))  # fmt: skip
    return Recording(states, states, fps, images)


def grey(episode: int, step: int, length: int) -> int:
    return 20 + 5 * (episode * length + step) % 230


def shown(images: np.ndarray) -> np.ndarray:
    """Which frame of all each image is."""
    found: np.ndarray = np.round((images.mean((-1, -2, -3)) * 255 - 20) / 5).astype(int)
    return found


def without(*steps: int, renumber: bool = False) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Rows that were dropped from episode 1."""

    def drop(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
        if episode != 1:
            return columns
        kept = [step for step in range(len(columns["timestamp"])) if step not in steps]
        found = {key: [list(values)[step] for step in kept] for key, values in columns.items()}
        return {**found, "frame_index": list(range(len(kept)))} if renumber else found

    return drop


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("renumber", [False, True])
def test_dropped_rows_keep_their_images_and_no_window_reaches_over_the_gap(
    tmp_path: Path, version: str, renumber: bool
) -> None:
    path = lerobot(tmp_path / "set", ticking(), version, rows=without(5, 6, renumber=renumber), video=True)
    recorded = open_recorded(path)
    assert recorded.episodes == (12, 10, 12)
    assert any("episode 1: 2 frames are missing after step 4" in line for line in recorded.opened_as())
    kept = [step for step in range(12) if step not in (5, 6)]
    seen = recorded.read(np.arange(12, 22), 2)
    assert shown(seen[FRONT][:, 1]).tolist() == [12 + step for step in kept]
    apart = seen[STATE][:, 1, 0] - seen[STATE][:, 0, 0]
    np.testing.assert_allclose(apart[[0, 5]], 0, atol=1e-6)  # the episode's first frame, and the gap's
    np.testing.assert_allclose(np.delete(apart, [0, 5]), 0.1, atol=1e-6)
    ahead = recorded.actions([12 + 3], 4)[0, :, 0]
    np.testing.assert_allclose(ahead, [0.3, 0.4, 0.4, 0.4], atol=1e-6)


@pytest.mark.parametrize(("drift", "message"), [
    (0.0, ""), (0.1, ""), (0.4, "images lie up to 0.40 frames"), (0.6, r"images lie up to 0.40 frames \(0.0400 s\)"),
    (1.0, "episode 1 begins at .* its 12 rows reach 1.00 frames beyond"), (3.0, "reach 3.00 frames beyond"),
    (-1.0, "episodes 0 and 1 overlap by 1.00 frames"), (-0.6, "images lie up to 0.40 frames"),
])  # fmt: skip
def test_a_video_that_is_shifted_is_aligned_or_refused_with_the_episode(tmp_path: Path, drift: float, message: str) -> None:
    def shift(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[1][f"videos/{FRONT}/from_timestamp"] += drift / 10
        return rows

    path = lerobot(tmp_path / "set", ticking(), per_file=3, meta=shift, video=True)
    if message:
        with pytest.raises(ValueError, match=message) as caught:
            open_recorded(path)
        assert "episode" in str(caught.value) and f"--names {FRONT}=" in str(caught.value)
        assert open_recorded(path, {FRONT: ""}).features == {STATE: (2,)}
    else:
        assert shown(open_recorded(path).read(np.arange(36), 1)[FRONT][:, 0]).tolist() == list(range(36))


def test_episodes_that_share_a_stretch_of_video_are_refused(tmp_path: Path) -> None:
    def both(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for end in ("from", "to"):  # all is consistent, but the second is the third's
            rows[1][f"videos/{FRONT}/{end}_timestamp"] = rows[2][f"videos/{FRONT}/{end}_timestamp"]
        return rows

    path = lerobot(tmp_path / "set", ticking(), per_file=3, meta=both, video=True)
    with pytest.raises(ValueError, match="episodes 1 and 2 overlap by 12.00 frames in the video"):
        open_recorded(path)


def test_a_video_at_another_rate_is_refused(tmp_path: Path) -> None:
    made = ticking()
    path = lerobot(tmp_path / "set", made, "v2.1", video=True)
    film(path / f"videos/chunk-000/{FRONT}/episode_000001.mp4", [each for each in made.images[1] for _ in "ab"][:18], 15)
    with pytest.raises(ValueError, match="episode 1: images lie up to 0.3. frames"):
        open_recorded(path)


def test_stamps_go_over_the_metadatas_rate(tmp_path: Path) -> None:
    path = lerobot(tmp_path / "set", ticking(fps=10), info={"fps": 30})
    recorded = open_recorded(path)
    assert recorded.dt_s == pytest.approx(0.1)
    assert any("frames are 0.1 s apart by their time stamps, the metadata says 0.03333 s" in line for line in recorded.notes)
    assert open_recorded(path, dt_s=1 / 30).dt_s == pytest.approx(1 / 30)  # as it is told to


def still(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
    return {**columns, "timestamp": np.zeros(len(columns["timestamp"]), np.float32)}


def test_stamps_that_do_not_rise_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = lerobot(tmp_path / "set", ticking(), rows=still)
    with pytest.raises(ValueError, match=r"episode 0: the time stamps go from 0 s in step 0 to 0 s .* --recorded-dt-s"):
        open_recorded(path)
    assert open_recorded(path, dt_s=0.1).dt_s == 0.1


def test_uneven_stamps_are_read_by_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stamps = np.concatenate([np.cumsum(rng.uniform(0.07, 0.13, 60)) for _ in range(2)])
    state = np.stack([stamps, stamps], 1).astype(np.float32)
    path = zarr_buffer(tmp_path / "set.zarr", {"state": state, "action": state, "timestamp": stamps}, [60, 60])
    recorded = open_recorded(path)
    assert recorded.dt_s == pytest.approx(0.1, rel=0.1)
    seen = recorded.at_period(3 * (recorded.dt_s or 0)).read(np.arange(20, 60), 3)[STATE][..., 0]
    wanted = seen[:, -1:] + 3 * (recorded.dt_s or 0) * np.array([-2, -1, 0])
    assert np.abs(seen - wanted).max() < 0.066  # half of the longest step
    gap = stamps.copy()
    gap[30:60] += 1.0
    found = open_recorded(zarr_buffer(tmp_path / "gap.zarr", {"state": state, "timestamp": gap}, [60, 60]))
    assert any("episode 0: " in line and "after step 29" in line for line in found.notes)


@pytest.mark.parametrize("factor", [1e3, 1e9])
def test_stamps_in_another_unit_are_refused(tmp_path: Path, factor: float) -> None:
    stamps = np.arange(40) / 10 * factor
    arrays = {"state": np.zeros((40, 2), np.float32), "timestamp": stamps}
    path = zarr_buffer(tmp_path / "set.zarr", arrays, [20, 20])
    with pytest.raises(ValueError, match="apart, expected seconds; are they milliseconds or nanoseconds"):
        open_recorded(path)
    assert open_recorded(path, {"timestamp": ""}).dt_s is None and open_recorded(path, dt_s=0.1).dt_s == 0.1


def test_windows_and_chunks_are_a_policys_period_apart(tmp_path: Path) -> None:
    recorded = open_recorded(lerobot(tmp_path / "set", ticking(2, 60, 30))).at_period(0.1)
    assert recorded.clock.stride == 3 and recorded.dt_s == 0.1
    np.testing.assert_allclose(np.diff(recorded.read([30], 4)[STATE][0, :, 0]), 0.1, atol=1e-6)
    np.testing.assert_allclose(np.diff(recorded.actions([30], 5)[0, :, 0]), 0.1, atol=1e-6)
    assert any("one of 3 frames" in line for line in recorded.notes)


@pytest.mark.parametrize("policy_s", [0.05, 0.02, 1 / 60, 0.12])
def test_a_rate_that_does_not_divide_is_refused_with_those_that_do(policy_s: float) -> None:
    clock = Clock.even([30, 30], 1 / 30)
    with pytest.raises(ValueError, match=r"expected a whole number of frames within 2%: .* --dt-s, such as 0.\d+ s"):
        clock.at_period(policy_s, HERE)


@pytest.mark.parametrize(("recorded_s", "policy_s", "stride"), [(1 / 29.97, 1 / 15, 2), (1 / 30, 1 / 30, 1), (0.005, 0.1, 20)])
def test_a_rate_that_nearly_divides_is_taken(recorded_s: float, policy_s: float, stride: int) -> None:
    assert Clock.even([30], recorded_s).at_period(policy_s, HERE).stride == stride
