"""Windows as a torch data set, against a plain loop; the same with a cache, with a worker, and in another process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import envs
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstrations
from envs.panda.recording import record, stored_starts
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from envs.windows import ACTION, WindowDataset, batch_loader

FEATURES = (f"{IMAGES}.front", f"{DEPTH}.wrist", POINTS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    """Two episodes of `avoid`, from disk."""
    env = envs.make("avoid", cameras=CameraSettings(cameras=("front", "wrist"), width=12, height=10, num_points=16))
    start = stored_starts("avoid", 0, "train", 1)[0]
    episodes = [record(env, start, mode, seed) for seed, mode in enumerate(("L-C-2", "R-R-4"))]
    env.close()
    folder = tmp_path_factory.mktemp("demos")
    Demonstrations.from_episodes(env.spec_task, [e for e in episodes if e is not None], [0, 0]).save(folder)
    return Demonstrations.load(folder)


def test_batches_against_a_plain_loop(stored: Demonstrations) -> None:
    dataset = WindowDataset(stored, FEATURES, observation_steps=3, horizon=4)
    frames = np.random.default_rng(0).permutation(len(dataset))[:20]
    batch = dataset[frames]
    assert {name: tuple(values.shape[1:]) for name, values in batch.items()} == {
        STATE: (3, 2), ACTION: (4, 2), FEATURES[0]: (3, 3, 10, 12), FEATURES[1]: (3, 1, 10, 12), POINTS: (3, 16, 3),
    }  # fmt: skip
    assert stored.cameras is not None
    for row, frame in enumerate(frames):
        mine = np.flatnonzero(stored.episode_index == stored.episode_index[frame])
        for step in range(3):
            at = max(mine[0], frame - (2 - step))
            assert torch.equal(batch[STATE][row, step], torch.from_numpy(stored.state[at]))
            for name in FEATURES:
                np.testing.assert_array_equal(batch[name][row, step].numpy(), stored.cameras.read(name, [at])[0])
        for step in range(4):
            assert torch.equal(batch[ACTION][row, step], torch.from_numpy(stored.action[min(mine[-1], frame + step)]))


def test_one_window_is_a_row_of_a_batch(stored: Demonstrations) -> None:
    dataset = WindowDataset(stored, FEATURES)
    batch = dataset[[3, 4]]
    for name, values in dataset[4].items():
        assert torch.equal(values, batch[name][1]) and values.dtype == torch.float32


def test_what_is_kept_in_memory_is_what_is_stored(stored: Demonstrations) -> None:
    plain, keeping = WindowDataset(stored, FEATURES, cache_mb=0), WindowDataset(stored, FEATURES)
    assert set(keeping._cacheable) == set(FEATURES[:2]) and not plain._cacheable
    # images are 3 bytes a pixel, depth 2: there is room for the first only
    room = len(plain) * 12 * 10 * 3 / 2**20
    assert set(WindowDataset(stored, FEATURES, cache_mb=room)._cacheable) == {FEATURES[0]}
    rng = np.random.default_rng(0)
    for _ in range(4):  # half of the later batches is there already
        frames = rng.integers(0, len(plain), 16)
        one, other = plain[frames], keeping[frames]
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(keeping._cached) == set(FEATURES[:2])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_reads_the_same_batches_in_the_same_order(stored: Demonstrations, context: str) -> None:
    dataset = WindowDataset(stored, FEATURES)
    batches = np.random.default_rng(0).integers(0, len(dataset), (5, 4)).tolist()
    here = list(batch_loader(dataset, batches))
    loader = batch_loader(dataset, batches, workers=1)
    loader.multiprocessing_context = context
    there = list(loader)
    assert len(here) == len(there) == 5
    for rows, one, other in zip(batches, here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(one[STATE], dataset[rows][STATE])


def test_what_is_not_stored_is_refused_before_anything_is_read(stored: Demonstrations, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'observation.images.left' is wanted.*give only.*observation.images.front"):
        WindowDataset(stored, [f"{IMAGES}.left"])
    blind = Demonstrations(**{**vars(stored), "cameras": None})
    with pytest.raises(ValueError, match="recorded without cameras: record again"):
        WindowDataset(blind, [POINTS])
    assert set(WindowDataset(blind)[0]) == {STATE, ACTION}
    with pytest.raises(ValueError, match="within 0 .."):
        WindowDataset(blind)[10_000]
