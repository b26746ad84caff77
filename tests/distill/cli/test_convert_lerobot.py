"""LeRobot's policies become one-step students by one command; where LeRobot's interpreter is named (FLOW2ONE_LEROBOT)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.cli.lerobot_card import front_matter
from distill.cli.main import main
from envs import task_spec
from envs.demonstrations import Demonstration, Demonstrations
from envs.recorded import open_recorded
from envs.specs import STATE
from students import load_student
from teachers.networks.observations import fake_observation

ROOT = Path(__file__).parents[3]
LEROBOT = os.environ.get("FLOW2ONE_LEROBOT", "")
SMALL = (
    "--sample.num-observations", "32", "--sample.num-hypotheses", "8", "--student.training-steps", "10", "--student.codes", "8",
    "--student.width", "32", "--evaluate.fidelity-observations", "4", "--evaluate.fidelity-samples", "8",
    "--evaluate.latency-calls", "5", "--evaluate.latency-warmup", "1",
    "--in-place.training-steps", "10", "--in-place.warmup-steps", "2",
)  # fmt: skip


def _record(path: Path) -> None:
    """A replay buffer of twelve episodes of noise, as the tiny policies see and act."""
    zarr = pytest.importorskip("zarr")
    rng, root, frames = np.random.default_rng(0), zarr.open_group(str(path), mode="w"), 240
    data, meta = root.create_group("data"), root.create_group("meta")
    data["state"] = rng.normal(1, 2, (frames, 3)).astype(np.float32)
    data["action"] = (rng.normal(0, 2, (frames, 2)) + [10, 20]).astype(np.float32)
    data["img"] = rng.integers(1, 255, (frames, 32, 32, 3)).astype(np.uint8)
    meta["episode_ends"] = np.arange(20, frames + 1, 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter with LeRobot")
@pytest.mark.parametrize("kind", ["multi_task_dit", "smolvla", "pi0", "diffusion", "xvla"])
def test_one_command_makes_a_student_of_a_lerobot_policy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _record(tmp_path / "recorded.zarr")
    adapter = ROOT / "teachers/adapters/lerobot_policies.py"
    tiny = [LEROBOT, str(ROOT / "tests/teachers/adapters/tiny_lerobot.py"), kind, str(tmp_path / "tiny"), str(adapter)]
    made = subprocess.run(tiny, capture_output=True, text=True, check=True)
    told = json.loads(made.stdout.strip().splitlines()[-1])
    if kind == "pi0":  # of fixed size, unless it is made small in the adapter's process, too
        adapter, extra = ROOT / "tests/teachers/adapters/tiny_pi.py", ("kind=pi0",)
    else:
        extra = ()
    assert main([
        "convert", "--teacher", f"{adapter}:build", "--adapter.python", LEROBOT, "--adapter.arguments",
        f"path={tmp_path / 'tiny/pretrained_model'}", "instruction=push the cube", *extra, "--observations", "recorded.zarr",
        "--names", "img=observation.images.front", "--dt-s", "0.1", "--out", "out", "--student.kind", "both", *SMALL,
    ]) == 0  # fmt: skip
    student = load_student(tmp_path / "out/distill/chamfer")
    seen = fake_observation(student.shape, 2)
    assert set(seen) == set(told["features"])
    chunks = student(seen, torch.randn(2, 5, *student.latent_shape))
    assert chunks.shape == (2, 5, told["horizon"], told["action_size"])
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    names = [policy["name"] for policy in report["policies"] if policy["kind"] == "student"]
    assert names == ["in_place", "chamfer"]
    # an ordinary folder of LeRobot's, whose own chunks at one step are the fine-tuned ones
    difference = json.loads(Path("out/distill/in_place/saved.json").read_text())["difference"]
    assert difference <= (4e-6 if kind == "diffusion" else 1e-6)  # see tests/teachers/adapters/test_lerobot_in_place.py
    folder = Path("out/distill/in_place/policy")
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= files
    card = front_matter(folder / "README.md")
    assert (card["library_name"], card["model_name"]) == ("lerobot", kind) and card["pipeline_tag"] == "robotics"
    assert "Success was not measured" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter with LeRobot")
def test_lerobot_eval_runs_the_folder_at_one_evaluation_for_each_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From demonstrations through LeRobot's dataset, training and `lerobot-eval`, which imports nothing of flow2one."""
    monkeypatch.chdir(tmp_path)
    spec, rng = task_spec("handles"), np.random.default_rng(0)
    low, high = np.array(spec.action.low), np.array(spec.action.high)
    episodes = [
        Demonstration(rng.normal(size=(length, len(spec.state_names))).astype(np.float32),
                      rng.uniform(low, high, (length, spec.action.size)).astype(np.float32),
                      np.zeros((length, 3), np.float32), np.zeros(len(spec.start_names)), spec.modes[0])
        for length in (30, 41, 25)
    ]  # fmt: skip
    shown = Demonstrations.from_episodes(spec, episodes, [0, 1, 2])
    shown.save("demos")
    scripts, there = ROOT / "benchmarks/lerobot", {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*program: object, **environment: str) -> None:
        done = subprocess.run([LEROBOT, *map(str, program)], capture_output=True, text=True, env={**there, **environment})
        assert done.returncode == 0, done.stderr

    run(ROOT / "lerobot_env_flow2one/__main__.py", "demos", "dataset")
    read, frames = open_recorded("dataset"), np.arange(shown.num_frames)
    assert read.episodes == (30, 41, 25) and list(read.tasks()) == [spec.summary]
    assert np.array_equal(read.frames(STATE, frames), shown.state) and np.array_equal(read.action_frames(frames), shown.action)
    run(scripts / "train.py", "dataset", "policy", "--steps", "3", "--chunk", "16", "--executed", "10")
    assert main([
        "convert", "--teacher", f"{ROOT / 'teachers/adapters/lerobot_policies.py'}:build", "--adapter.python", LEROBOT,
        "--adapter.arguments", "path=policy/pretrained_model", f"instruction={spec.summary}", "--observations", "dataset",
        "--out", "out", "--student.kind", "in_place", *SMALL,
    ]) == 0  # fmt: skip
    command = json.dumps([sys.executable, str(scripts / "world.py"), "handles"])
    run(
        scripts / "counted_eval.py", "counts.json", "--policy.path=out/distill/in_place/policy", "--policy.device=cpu",
        "--env.type=other_process", "--env.discover_packages_path=gym_other_process", f"--env.command={command}",
        f"--env.state_size={len(spec.state_names)}", f"--env.action_size={spec.action.size}",
        f"--env.max_steps={spec.max_steps}", "--eval.n_episodes=2", "--eval.batch_size=1", "--output_dir=evaluated",
        PYTHONPATH=str(scripts),
    )  # fmt: skip
    counts, told = json.loads(Path("counts.json").read_text()), json.loads(Path("evaluated/eval_info.json").read_text())
    assert told["overall"]["n_episodes"] == 2 and 0 <= told["overall"]["pc_success"] <= 100
    assert counts["queries"] == counts["evaluations"] == counts["chunks"] >= 2 and counts["modules_of_flow2one"] == []
