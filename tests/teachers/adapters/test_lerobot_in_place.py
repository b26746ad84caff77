"""LeRobot's policies fine-tuned in place, where LeRobot is (FLOW2ONE_LEROBOT): plain LeRobot runs them at one step."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teachers.adapters.lerobot_in_place import why_not

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
LEROBOT = os.environ.get("FLOW2ONE_LEROBOT", "")


def told(*arguments: str, where: Path) -> dict[str, Any]:
    """What tests/teachers/adapters/in_place_lerobot.py says, run in a folder of its own."""
    program = [LEROBOT, str(HERE / "in_place_lerobot.py"), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=850, cwd=where)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter that has LeRobot")
@pytest.mark.parametrize(
    ("kind", "setting", "horizon"),
    [("multi_task_dit", "num_integration_steps", 4), ("smolvla", "num_steps", 6), ("pi0", "num_inference_steps", 6),
     ("pi05", "num_inference_steps", 6), ("xvla", "num_denoising_steps", 6), ("diffusion", "num_inference_steps", 4),
     ("diffusion_sample", "num_inference_steps", 4), ("multi_task_dit_diffusion", "num_inference_steps", 4)],
)  # fmt: skip
def test_plain_lerobot_runs_the_fine_tuned_policy_at_one_evaluation(
    tmp_path: Path, kind: str, setting: str, horizon: int
) -> None:
    made = told("train", kind, str(tmp_path), str(ROOT), where=tmp_path)
    assert made["faults"] == [] and made["finite"] and made["without_gradient"] == []
    unused = 2 if kind == "xvla" else 0  # of xvla's head what projects a second camera, which the tiny policy does not have
    assert made["with_gradient"] == made["changed"] == made["weights"] - unused  # the whole head is trained, and learns
    assert made["changed_outside"] == made["saved_outside"] == [] and made["same_names"]  # the encoder: bit for bit
    assert made["loss"][1] < made["loss"][0]
    # of diffusion the first timestep moves into a bias when it is saved: one rounding of raw actions of about 20
    exact = 1e-6 if "diffusion" not in kind else 4e-6
    assert made["config"][setting] == 1 and made["reloaded"] <= exact and made["spread"] > 1
    assert "diffusion" not in kind or made["config"]["prediction_type"] == "sample"
    assert "policy_preprocessor.json" in made["files"] and "policy_postprocessor.json" in made["files"]
    plain = told("plain", str(tmp_path), where=tmp_path)
    assert plain["calls"] == plain["looks"] == 1  # for four observations
    assert plain["difference"] <= exact and plain["ours"] == []
    assert plain["shape"] == [4, horizon, 2] and plain["spread"] > 1


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({"type": "smolvla"}, [], ""),
        ({"type": "multi_task_dit", "is_flow_matching": True}, [{"registry_name": "unnormalizer_processor"}], ""),
        ({"type": "multi_task_dit", "is_flow_matching": False}, [], ""),
        ({"type": "diffusion", "compile_model": True}, [], "its network is compiled"),
        ({"type": "act"}, [], r"act is not among \['diffusion', 'multi_task_dit', 'pi0', 'pi05', 'smolvla', 'xvla'\]"),
        ({"type": "pi0"}, [{"registry_name": "absolute_actions_processor"}], "relative to a state"),
        ({"type": "pi0"}, [{"registry_name": "absolute_actions_processor", "config": {"enabled": False}}], ""),
    ],
)
def test_what_cannot_be_fine_tuned_is_said(tmp_path: Path, config: dict[str, Any], steps: list[Any], message: str) -> None:
    (tmp_path / "policy_postprocessor.json").write_text(json.dumps({"steps": steps}))
    found = why_not(SimpleNamespace(config=SimpleNamespace(**config)), tmp_path)
    assert re.search(message, found) if message else found == ""
