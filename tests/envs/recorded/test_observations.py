"""Windows of recorded observations against a plain loop, our own demonstrations, and what is no data of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstrations, windows
from envs.panda.recording import record, stored_starts
from envs.recorded import open_recorded
from envs.recorded.observations import RecordedObservations
from envs.specs import DEPTH, IMAGES, POINTS, STATE

SETTINGS = CameraSettings(cameras=("front",), width=20, height=16, num_points=24)


class Toy(RecordedObservations):
    """Frame f has the state (f, f + 100) and the action (f + 200,)."""

    def __init__(self, path: Path, episodes: Sequence[int] = (3, 1, 2), spoilt: int = -1, **told: tuple[str, ...]) -> None:
        super().__init__(path, {STATE: (2,)}, episodes, action_size=1, **told)  # type: ignore[arg-type]
        self.spoilt, self.asked = spoilt, np.zeros(0, np.int64)

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        self.asked = frames_M
        found = np.stack([frames_M, frames_M + 100], 1).astype(np.float64)
        found[frames_M == self.spoilt, 1] = np.nan
        return found

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return (frames_M + 200)[:, None].astype(np.float64)

    def files(self) -> tuple[list[Path], list[Path]]:
        return sorted(self.path.glob("*.json")), sorted(self.path.glob("*.bin"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of `avoid`, seen by a camera."""
    env = envs.make("avoid", cameras=SETTINGS)
    start = stored_starts("avoid", 0, "train", 1)[0]
    found = [record(env, start, mode, seed) for seed, mode in enumerate(("L-C-2", "R-R-4"))]
    env.close()
    folder = tmp_path_factory.mktemp("stored") / "demos"
    Demonstrations.from_episodes(envs.task_spec("avoid"), [each for each in found if each], [0, 0]).save(folder)
    return folder


def test_windows_never_cross_the_border_of_an_episode(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    assert (len(toy), toy.episodes) == (6, (3, 1, 2))
    seen = toy.read([5, 0, 3, 4], 3)[STATE]
    assert seen[..., 0].tolist() == [[4, 4, 5], [0, 0, 0], [3, 3, 3], [4, 4, 4]] and seen.dtype == np.float32
    assert toy.asked.tolist() == [0, 3, 4, 5]  # in order, and none twice
    assert toy.actions([1, 3, 4], 3)[..., 0].tolist() == [[201, 202, 202], [203, 203, 203], [204, 205, 205]]
    assert toy.episode_index([0, 2, 3, 5]).tolist() == [0, 0, 1, 2]
    assert toy.read([], 2)[STATE].shape == (0, 2, 2) and toy.actions([], 4).shape == (0, 4, 1)


def test_what_is_not_there_and_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    for indices in ([6], [-1], [[0]]):
        with pytest.raises(ValueError, match=r"indices must be \[n\] within 0 .. 5"):
            Toy(tmp_path).read(indices, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"observation.state has NaN or infinity in frame 5 \(episode 2, step 1\)"):
        Toy(tmp_path, spoilt=5).read([0, 5], 2)
    with pytest.raises(ValueError, match="expected at least one frame in each"):
        Toy(tmp_path, (2, 0))
    with pytest.raises(ValueError, match="state_names are 1, expected 2"):
        Toy(tmp_path, state_names=("x_m",))


def test_a_fingerprint_tells_metadata_and_data_that_changed(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "data.bin").write_bytes(bytes(300_000))
    first = Toy(tmp_path).fingerprint()
    assert first == Toy(tmp_path).fingerprint() and json.loads(json.dumps(first)) == first
    (tmp_path / "data.bin").write_bytes(bytes(299_999) + b"x")
    second = Toy(tmp_path).fingerprint()
    (tmp_path / "meta.json").write_text("[]")
    third = Toy(tmp_path).fingerprint()
    assert len({each["files_sha256"] for each in (first, second, third)}) == 3
    shutil.copytree(tmp_path, tmp_path / "copy" / "of")
    assert Toy(tmp_path / "copy" / "of").fingerprint() == third


def test_our_demonstrations_are_what_was_recorded(stored: Path) -> None:
    demonstrations, recorded = Demonstrations.load(stored), open_recorded(str(stored))
    images = {f"{IMAGES}.front": (3, 16, 20), f"{DEPTH}.front": (1, 16, 20)}
    assert recorded.features == {STATE: (2,), **images, POINTS: (24, 3)}
    assert (recorded.state_names, recorded.action_names) == (demonstrations.spec.state_names, demonstrations.spec.action.names)
    assert recorded.dt_s == demonstrations.spec.dt_s and len(recorded) == demonstrations.num_frames
    frames = np.array([len(recorded) - 1, 0, recorded.episodes[0], 7])
    state, action = windows(demonstrations, frames, 3, 8)
    seen = recorded.read(frames, 3)
    np.testing.assert_array_equal(seen[STATE], state)
    np.testing.assert_array_equal(recorded.actions(frames, 8), action)
    assert demonstrations.cameras is not None
    for name in (f"{IMAGES}.front", f"{DEPTH}.front", POINTS):
        np.testing.assert_array_equal(seen[name][:, -1], demonstrations.cameras.read(name, frames))
    assert recorded.instructions([0, 1]) == ["", ""] and len(recorded.fingerprint()["files_sha256"]) == 64


def test_what_is_no_recording_is_refused(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is nothing"):
        open_recorded(tmp_path / "nowhere")
    (tmp_path / "data.pkl").write_bytes(b"")
    for path in (tmp_path, tmp_path / "data.pkl"):
        with pytest.raises(ValueError, match=r"expected our demonstrations .* LeRobot .* zarr .* HDF5"):
            open_recorded(path)
    with pytest.raises(ValueError, match="our own demonstrations have our names already"):
        open_recorded(stored, {"img": f"{IMAGES}.front"})
