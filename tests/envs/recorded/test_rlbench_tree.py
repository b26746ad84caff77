"""RLBench's stored demonstrations as recorded observations: one variation, several tasks, and all_variations mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.rlbench.tree import descriptions, episode, episodes
from envs.specs import DEPTH, IMAGES, STATE

Store = Callable[..., Path]


def test_a_tree_is_read_from_any_of_its_folders(store_rlbench: Store) -> None:
    root = store_rlbench(tasks=["reach_target", "take_it"], variations=[0, 1], episodes=2, frames=4, size=[18, 24])
    task = open_recorded(root / "reach_target")
    assert task.episodes == (4, 4, 4, 4) and task.dt_s == 0.05 and task.features[STATE] == (8,)
    assert task.features[f"{IMAGES}.front"] == (3, 18, 24) and task.features[f"{DEPTH}.wrist"] == (1, 18, 24)
    assert task.tasks() == {"do reach_target": 16}
    assert open_recorded(root).tasks() == {"do reach_target": 16, "do take_it": 28}
    assert open_recorded(root / "reach_target/variation1/episodes/episode0").episodes == (4,)
    stored = episode(root, "reach_target", 0, 1)
    low = np.concatenate([stored.low["joint_positions"], stored.low["gripper_open"][:, None]], 1)
    np.testing.assert_allclose(task.read([5], 2)[STATE][0], low[:2], rtol=1e-6)
    np.testing.assert_allclose(task.actions([5], 4)[0], low[[2, 3, 3, 3]], rtol=1e-6)  # the next frame's state
    seen = task.read([6], 1)
    images = stored.images([2], ["front"], rgb=True, depth=True)
    np.testing.assert_allclose(seen[f"{IMAGES}.front"][0, 0], images["front.rgb"][0].transpose(2, 0, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(seen[f"{DEPTH}.front"][0, 0, 0], images["front.depth"][0], rtol=1e-6)
    pose = open_recorded(root / "take_it", {"gripper_pose": STATE, "joint_positions": ""}, [STATE])
    assert pose.features == {STATE: (8,)} and pose.parts[STATE] == ("gripper_open", "gripper_pose")


def mixed(root: Path) -> Path:
    """As PerAct's generator stores them: all variations in one folder, each episode with its own words."""
    folder, number = root / "reach_target/all_variations/episodes", 0
    for variation in (0, 1):
        own = root / f"reach_target/variation{variation}"
        for each in sorted((own / "episodes").iterdir()):
            shutil.copytree(each, folder / f"episode{number}")
            shutil.copy(own / "variation_descriptions.pkl", folder / f"episode{number}")
            number += 1
        shutil.rmtree(own)
    return root


def test_all_variations_are_read_by_the_benchmark_and_as_a_recording(store_rlbench: Store) -> None:
    root = mixed(store_rlbench(variations=[0, 1], episodes=2, frames=4, size=[12, 12]))
    assert episodes(root, "reach_target", 0) == [0, 1] and episodes(root, "reach_target", 1) == [2, 3]
    assert descriptions(root, "reach_target", 1) == ["do reach_target", "variation 1"]
    assert episode(root, "reach_target", 1, 3).variation == 1
    recorded = open_recorded(root)
    assert recorded.episodes == (4, 4, 4, 4) and recorded.tasks() == {"do reach_target": 16}
    with pytest.raises(ValueError, match="holds no episode<e>"):
        episodes(root, "reach_target", 5)


@pytest.mark.parametrize("words", [b"", b"junk", b"\x80\x04\x8c\x02os\x8c\x06system\x93."])
def test_words_that_are_something_else_are_not_needed(store_rlbench: Store, words: bytes) -> None:
    """Those of RLBench's own test assets hold an observation."""
    root = store_rlbench(episodes=2, frames=4, size=[12, 12])
    (root / "reach_target/variation0/variation_descriptions.pkl").write_bytes(words)
    assert descriptions(root, "reach_target", 0) == []
    recorded = open_recorded(root)
    assert recorded.tasks() == {} and any("no readable variation_descriptions.pkl" in line for line in recorded.notes)


def lose_image(root: Path) -> None:
    (root / "reach_target/variation0/episodes/episode1/front_rgb/2.png").unlink()


def spoil_pickle(root: Path) -> None:
    (root / "reach_target/variation0/episodes/episode1/low_dim_obs.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")


@pytest.mark.parametrize(("spoil", "message"), [
    (lose_image, r"front_rgb: 1 of 4 images are missing, the first is 2.png; .*--names front_rgb="),
    (spoil_pickle, r"low_dim_obs.pkl: the pickle names 'os.system', expected only"),
])  # fmt: skip
def test_what_is_missing_or_foreign_is_refused(store_rlbench: Store, spoil: Callable[[Path], None], message: str) -> None:
    root = store_rlbench(episodes=2, frames=4, size=[12, 12])
    spoil(root)
    with pytest.raises(ValueError, match=message):
        open_recorded(root)
    if spoil is lose_image:
        assert len(open_recorded(root, features=[STATE])) == 8
