"""The runtime as a robot has it: the installed package, numpy and ONNX Runtime, and nothing else."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.specs import STATE
from students import load_student

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib.util, json, sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [{site!r}]
from flow2one_runtime import Student
student = Student.load({folder!r}, backend="onnxruntime")
found = [name for name in ("torch", "distill", "envs", "students", "teachers") if importlib.util.find_spec(name)]
chunks = student.generate({{"observation.state": {state!r}}}, {latents!r})
print(json.dumps([found, chunks.tolist(), student.select_action({{"observation.state": [0.5, 0.0]}}).tolist()]))
"""


def test_it_needs_numpy_and_onnxruntime_alone(exported: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    # a copy, as setuptools builds within the folder that it is given
    subprocess.run(["cp", "-r", str(ROOT / "flow2one_runtime"), str(tmp_path / "source")], check=True)
    subprocess.run([*pip, str(tmp_path / "site"), str(tmp_path / "source")], check=True, capture_output=True, timeout=120)
    assert {path.name.split("-")[0] for path in (tmp_path / "site").iterdir()} == {"flow2one_runtime"}
    for name in ("numpy", "onnxruntime"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        for part in (package, package.with_name(f"{name}.libs")):
            if part.is_dir():
                (tmp_path / "site" / part.name).symlink_to(part)

    state, latents = [[0.4, 0.1], [0.5, 0.1]], [[0.3, -1.0], [-0.7, 0.2], [1.9, 0.0]]
    code = PROGRAM.format(site=str(tmp_path / "site"), folder=str(exported), state=state, latents=latents)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, chunks, action = json.loads(done.stdout)
    assert found == [] and len(action) == 2
    with torch.no_grad():
        expected = load_student(exported)({STATE: torch.tensor([state])}, torch.tensor([latents]))[0].numpy()
    np.testing.assert_allclose(chunks, expected, atol=3e-5)


def test_its_modules_import_nothing_of_flow2one() -> None:
    allowed = {"numpy", "onnxruntime", "openvino", "torch", "flow2one_runtime", *sys.stdlib_module_names}
    files = sorted((ROOT / "flow2one_runtime").glob("*.py"))
    assert len(files) == 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])  # fmt: skip
            assert {name.split(".")[0] for name in names} <= allowed, path.name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_installs_into_a_new_environment_from_the_package_index(exported: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(ROOT / "flow2one_runtime"), str(tmp_path / "source")], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    program = tmp_path / "venv/bin/python"
    subprocess.run([program, "-m", "pip", "install", "--quiet", f"{tmp_path / 'source'}[onnx]"], check=True, timeout=600)
    code = f"from flow2one_runtime import Student; print(Student.load({str(exported)!r}).select_action(" \
           "{'observation.state': [0.5, 0.0]}).shape)"  # fmt: skip
    done = subprocess.run([program, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(2,)", done.stderr
