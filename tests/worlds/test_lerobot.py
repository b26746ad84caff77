"""Plain LeRobot on our tasks: it finds them, loads the exported data set, trains on it, and evaluates both policies."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.panda.recording import record, stored_starts
from students.one_step import OneStepStudent
from tests.worlds.conftest import interpreter

pytestmark = [pytest.mark.worlds, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
LOADED = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
held = LeRobotDataset(sys.argv[1], root=sys.argv[1])
row, info = held[3], held.meta.info
print(json.dumps({"version": info["codebase_version"] if isinstance(info, dict) else info.codebase_version,
    "frames": held.num_frames, "episodes": held.num_episodes, "fps": held.fps, "state": row["observation.state"].tolist(),
    "action": row["action"].tolist(), "image": (row["observation.images.front"] * 255).round().int().tolist()}))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three demonstrations with a camera."""
    folder = tmp_path_factory.mktemp("recorded") / "demos"
    env = envs.make("avoid", CameraSettings(cameras=("front",), width=24, height=20, depth=False, num_points=0))
    made: list[Demonstration] = []
    for number, start in enumerate(stored_starts("avoid", 0, "train", 3)):
        shown = record(env, start, env.spec_task.modes[number], number, 0.0)
        assert shown is not None
        made.append(shown)
    env.close()
    Demonstrations.from_episodes(env.spec_task, made, range(3)).save(folder)
    return folder


def run(folder: Path, *command: str) -> str:
    there = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=there, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def evaluated(folder: Path, python: str, policy: Path) -> dict[str, Any]:
    run(folder, str(Path(python).with_name("lerobot-eval")), f"--policy.path={policy}", "--env.type=flow2one_avoid",
        "--eval.n_episodes=2", "--eval.batch_size=1", f"--output_dir={folder / 'eval'}")  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "eval" / "eval_info.json").read_text())
    return found


def test_lerobot_loads_what_was_exported(recorded: Path, tmp_path: Path) -> None:
    python = interpreter("lerobot")
    run(tmp_path, python, "-m", "lerobot_env_flow2one", str(recorded), "exported")
    told = json.loads(run(tmp_path, python, "-c", LOADED, "exported").splitlines()[-1])
    held = Demonstrations.load(recorded)
    assert (told["version"], told["frames"], told["episodes"], told["fps"]) == ("v3.0", held.num_frames, 3, 20)
    assert told["state"] == held.state[3].tolist() and told["action"] == held.action[3].tolist()
    assert held.cameras is not None
    assert np.array_equal(np.array(told["image"]).transpose(1, 2, 0), held.cameras.raw("observation.images.front", [3])[0])


def test_lerobot_trains_on_it_and_evaluates_in_the_task(recorded: Path, tmp_path: Path) -> None:
    python = interpreter("lerobot")
    run(tmp_path, python, "-m", "lerobot_env_flow2one", str(recorded), "exported")
    run(tmp_path, str(Path(python).with_name("lerobot-train")), "--policy.type=act", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=32",
        "--policy.chunk_size=8", "--policy.n_action_steps=8", "--policy.pretrained_backbone_weights=null",
        "--dataset.repo_id=exported", "--dataset.root=exported", "--steps=2", "--batch_size=4", "--num_workers=0",
        "--save_freq=2", "--output_dir=trained",
        '--policy.input_features={"observation.state": {"type": "STATE", "shape": [2]}, '
        '"observation.environment_state": {"type": "ENV", "shape": [2]}}')  # fmt: skip
    told = evaluated(tmp_path, python, tmp_path / "trained/checkpoints/last/pretrained_model")
    assert told["overall"]["n_episodes"] == 2


def test_lerobot_evaluates_an_exported_student(tmp_path: Path, make_student: Callable[..., OneStepStudent]) -> None:
    python = interpreter("lerobot")
    make_student(codes=4).save_pretrained(tmp_path / "student")
    run(tmp_path, python, "-m", "lerobot_policy_flow2one", str(tmp_path / "student"), "policy", "4")
    assert evaluated(tmp_path, python, tmp_path / "policy")["overall"]["n_episodes"] == 2
