"""LeRobot's policies become one-step students by one command; where LeRobot's interpreter is named (FLOW2ONE_LEROBOT)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.cli.lerobot_card import front_matter
from distill.cli.main import main
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
    assert main([
        "convert", "--teacher", f"{adapter}:build", "--adapter.python", LEROBOT, "--adapter.arguments",
        f"path={tmp_path / 'tiny/pretrained_model'}", "instruction=push the cube", "--observations", "recorded.zarr",
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
