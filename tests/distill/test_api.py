"""The commands as Python functions: the figures are those of the report, and `import distill` stays light."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill import compare, convert, load_student, run
from distill.cli.export import ExportOptions, export_student
from distill.config import Config
from distill.presets import apply_preset, find_preset
from flow2one_runtime import Student
from tests.envs.recorded.writers import as_zarr, walk

ROOT = Path(__file__).parents[2]
SMALL = {
    "sample": {"num_observations": 16, "num_hypotheses": 3, "shard_size": 8},
    "student": {"training_steps": 4, "width": 16, "depth": 1},
    "evaluate": {"fidelity_observations": 2, "fidelity_samples": 6, "latency_calls": 3, "latency_warmup": 1,
                 "latency_modes": [], "frontier_samples": []},
}
HOLD = """
import torch
class Hold:
    horizon, action_size, observation_steps, num_steps, dt_s = 4, 2, 1, 1, 0.1
    def sample(self, observation, num_hypotheses, num_steps, generator):
        state = observation["observation.state"]
        return state[:, -1, None, None] + 0.05 * torch.randn(len(state), num_hypotheses, 4, 2, generator=generator)
def build(): return Hold()
"""


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import sys, distill; print(sorted({'torch', 'numpy', 'mujoco', 'tyro', 'envs'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'destil'"):
        _ = distill.destil


def test_a_finished_run_is_reused_and_its_figures_are_the_reports(copied_run) -> None:
    threads = torch.get_num_threads()
    found = run(copied_run.config)
    told = {row["name"]: row for row in json.loads((copied_run.run / "report/report.json").read_text())["policies"]}
    assert found.folder.resolve() == copied_run.run and found.report.is_file() and torch.get_num_threads() == threads
    assert [policy.name for policy in found.policies] == list(told)
    assert found.reference.name == "teacher_4" and found.reference.nfe == 4 and found.reference.speedup == 1
    assert found.student is not None and found.student.name == "chamfer" and found.student_folder is not None
    for policy in found.policies:
        row = told[policy.name]
        assert policy.success_rate == row["successes"] / 6 and policy.episodes == 6 and policy.modes_total == 24
        assert policy.latency_ms == row["latency"]["median_ms"]
        assert policy.speedup == pytest.approx(told["teacher_4"]["latency"]["median_ms"] / policy.latency_ms)
        assert policy.energy_distance == row["fidelity"]["energy_distance"]
    assert load_student(found.student_folder).shape.task == "avoid"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.student.nfe = 2  # type: ignore[misc]
    # settings are keys of a preset, over the preset
    again = run(copied_run.config, evaluate={"latency_calls": 21})
    assert json.loads((again.folder / "latency/latency.json").read_text())["chamfer"]["calls"] == 21


def test_policies_on_recordings_without_a_task_have_fidelity_and_time_and_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recording = as_zarr(tmp_path / "plain.zarr", walk(10, 12, fps=10))
    Path("hold.py").write_text(HOLD)
    made = convert(teacher="hold.py:build", observations=recording, out="out", **SMALL)
    assert made.student is not None and made.student.success_rate is None and made.student.modes_reached is None
    assert made.student.nfe == 1 and np.isfinite([made.student.latency_ms, made.student.energy_distance]).all()
    assert made.report == (Path("out").resolve() / "report/report.html")
    told = json.loads((made.folder / "report/report.json").read_text())["policies"][-1]["fidelity"]
    exported = export_student(ExportOptions(made.student_folder, Path("exported")), lambda line: None)
    card = (exported / "README.md").read_text()
    assert f"| student | 1 | {told['energy_distance']:.3g} | {told['off_support_share']:.1%} |" in card
    plan = Student.load(exported).predict_action_chunk({"observation.state": np.zeros(2)})
    assert plan.shape == (4, 2) and np.isfinite(plan).all()
    loop = [sys.executable, str(ROOT / "examples/numpy_loop.py"), "exported"]
    done = subprocess.run(loop, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("plans of 4 actions (action_0, action_1); "), done.stderr
    found = compare("hold.py:build", made.student_folder, observations=recording, out="both", evaluate=SMALL["evaluate"])
    assert found.student is None and [policy.kind for policy in found.policies] == ["teacher", "student"]
    assert found.policies[1].success_rate is None and found.reference is found.policies[0]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_four_lines_of_a_page_run(page: str, copied_run, capsys: pytest.CaptureFixture[str]) -> None:
    (lines, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 4 and 'run("quickstart")' in lines
    # a file of this name comes before the preset: the tiny run, which is finished
    Path("quickstart").write_text(copied_run.config.read_text())
    program = copied_run.folder / "lines.py"
    program.write_text(lines)
    runpy.run_path(str(program))
    *_, printed = capsys.readouterr().out.splitlines()
    found = run("quickstart")
    assert found.student is not None
    assert printed == f"{found.student.success_rate} {found.reference.success_rate} {found.student.speedup} {found.report}"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: run("aviod"), "no config at aviod, and no preset of this name.*'avoid'"),
        (lambda: run(student={"trainning_steps": 4}), "unknown key 'student.trainning_steps'.*training_steps"),
        (lambda: run(seed="one"), "settings: seed is 'one', expected a int"),
        (lambda: convert(observations="x", out="y"), "--teacher is missing"),
        (lambda: compare("one", observations="x", out="y"), "expected at least two"),
        (lambda: convert(teacher="x.py", observations="nowhere", out="y"), "nowhere does not exist"),
    ],
)
def test_wrong_settings_are_refused_as_by_the_commands(call, line: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=line):
        call()
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_says_that_it_is_small(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    note = apply_preset(Config(), find_preset("quickstart")).note
    assert "no results" in note
    assert main(["demos", "--config", "quickstart", "--processes", "1", "--demos.train-starts", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == note
