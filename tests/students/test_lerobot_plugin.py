"""The LeRobot plug-in, where LeRobot and the plug-in are installed (FLOW2ONE_LEROBOT): through LeRobot's own factory."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from students.one_step import OneStepStudent

ROOT = Path(__file__).parent.parent.parent
LEROBOT = os.environ.get("FLOW2ONE_LEROBOT", "")


def test_the_package_has_the_names_that_lerobot_looks_for() -> None:
    folder = ROOT / "lerobot_policy_flow2one"
    name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
    assert name == folder.name and name.startswith("lerobot_policy_")
    assert "class Flow2OneConfig(" in (folder / "configuration_flow2one.py").read_text()
    assert "class Flow2OnePolicy(" in (folder / "modeling_flow2one.py").read_text()
    assert "def make_flow2one_pre_post_processors(" in (folder / "processor_flow2one.py").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter that has LeRobot and the plug-in")
def test_lerobot_eval_runs_two_episodes(tmp_path: Path, make_student: Callable[..., OneStepStudent]) -> None:
    make_student(codes=4).save_pretrained(tmp_path / "student")
    there = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    folder, out = tmp_path / "new", tmp_path / "out"
    made = [LEROBOT, "-m", "lerobot_policy_flow2one", str(tmp_path / "student"), str(folder), "4"]
    command = [
        str(Path(LEROBOT).with_name("lerobot-eval")), f"--policy.path={folder}", "--env.type=flow2one_avoid",
        "--env.discover_packages_path=lerobot_env_flow2one", "--eval.n_episodes=2", "--eval.batch_size=1",
        f"--output_dir={out}",
    ]  # fmt: skip
    for program in (made, command):
        done = subprocess.run(program, capture_output=True, text=True, env=there, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    result = json.loads((out / "eval_info.json").read_text())
    assert result["overall"]["n_episodes"] == 2 and 0 <= result["overall"]["pc_success"] <= 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter that has LeRobot and the plug-in")
@pytest.mark.parametrize("codes", [0, 4])
def test_a_student_comes_out_of_lerobots_factory_as_it_went_in(
    tmp_path: Path, make_student: Callable[..., OneStepStudent], codes: int
) -> None:
    make_student(codes=codes).save_pretrained(tmp_path / "student")
    program = [LEROBOT, str(Path(__file__).parent / "plugin_lerobot.py"), str(tmp_path / "student"), str(tmp_path / "new"), "0"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=850, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["type"], result["class"]) == ("flow2one", "Flow2OnePolicy")
    assert result["apart"] < 1e-6 and result["plan"] == [5, 8, 2] and result["action"] == [5, 2]
    assert result["left"] == 3 and result["gradient"] and result["loss"] > 0
