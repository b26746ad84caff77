"""Everything that is wrong with a folder, an argument or an observation is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.store.manifest import sha256_file
from envs.specs import STATE
from flow2one_runtime import Student


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported student, with the format onnx alone; the student itself is beside it."""
    shutil.copytree(exported.parent, tmp_path, dirs_exist_ok=True)
    formats = json.loads((tmp_path / "exported/export.json").read_text())["formats"]
    changed(tmp_path / "exported", formats={"onnx": formats["onnx"]})
    return tmp_path / "exported"


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder: Path, **entries: Any) -> None:
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_folder_that_is_no_export_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "nowhere/export.json does not exist" in refused(lambda: Student.load(tmp_path / "nowhere"))
    line = refused(lambda: Student.load(tmp_path / "student"))
    assert "a student that was not exported; run: flow2one export --student" in line
    (folder / "export.json").write_text("{")
    assert "is not what `flow2one export` writes (JSONDecodeError" in refused(lambda: Student.load(folder))
    (folder / "export.json").write_text("[]")
    assert "is not what `flow2one export` writes (AttributeError" in refused(lambda: Student.load(folder))


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"schema_version": 7}, "got schema_version 7, expected 1"),
        ({"inputs": []}, "is not what `flow2one export` writes (IndexError"),
        ({"formats": {}}, "holds no graph; export the student with --formats onnx"),
        ({"output": {}}, "is not what `flow2one export` writes (KeyError: 'shape')"),
        ({"selection": {"kind": "best", "execution_horizon": 4}}, "got selection 'best', expected one of"),
        ({"action": None}, "selection 'outlier_rejection' needs the ranges of the actions"),
    ],
)
def test_a_description_that_is_wrong_is_refused(folder: Path, entries: dict[str, Any], line: str) -> None:
    changed(folder, **entries)
    assert line in refused(lambda: Student.load(folder))


def test_files_that_are_missing_changed_or_broken_are_refused(folder: Path) -> None:
    graph = folder / "student.onnx"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1])
    assert "student.onnx was changed since it was exported" in refused(lambda: Student.load(folder))
    changed(folder, files=json.loads((folder / "export.json").read_text())["files"] | {"student.onnx": sha256_file(graph)})
    graph.write_bytes(b"no graph")
    changed(folder, files={"student.onnx": sha256_file(graph)})
    assert "student.onnx cannot be opened by onnxruntime: " in refused(lambda: Student.load(folder))
    graph.unlink()
    assert "student.onnx is missing" in refused(lambda: Student.load(folder))


def test_wrong_arguments_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "backend: got 'tensorrt', expected auto or one of" in refused(lambda: Student.load(folder, backend="tensorrt"))
    line = refused(lambda: Student.load(folder, backend="torch"))
    assert "holds the formats ['onnx'], torch needs one of ['torch']: flow2one export --formats torch" in line
    assert "deadline_s: got 0, expected seconds above 0" in refused(lambda: Student.load(folder, deadline_s=0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(lambda: Student.load(folder))
    assert line == "none of ['onnxruntime', 'openvino'] is installed; pip install onnxruntime"


@pytest.mark.parametrize(
    ("observation", "line"),
    [
        ({}, "observation: observation.state is missing, got []"),
        ({"state": np.zeros(2)}, "observation: observation.state is missing, got ['state']"),
        ({STATE: np.zeros(3)}, "observation.state: got the shape (3,), expected (2, 2) or, for one step, (2,)"),
        ({STATE: np.zeros((1, 2, 2))}, "observation.state: got the shape (1, 2, 2), expected (2, 2) or, for one step, (2,)"),
        ({STATE: np.array([0.5, np.nan])}, "observation.state: got NaN or infinity, expected finite numbers"),
        ({STATE: np.array([np.inf, 0.0])}, "observation.state: got NaN or infinity, expected finite numbers"),
        ({STATE: ["a", "b"]}, "observation.state: got list, expected numbers of shape (2, 2)"),
    ],
)
def test_an_observation_that_is_wrong_is_refused(folder: Path, observation: dict[str, Any], line: str) -> None:
    student = Student.load(folder)
    assert refused(lambda: student.select_action(observation)) == line
    assert refused(lambda: student.predict_action_chunk(observation)) == line
    assert np.isfinite(student.select_action({STATE: np.array([0.5, 0.0])})).all()  # and the episode goes on


def test_latents_and_actions_that_are_wrong_are_refused(folder: Path) -> None:
    student = Student.load(folder)
    whole = {STATE: np.zeros((2, 2))}
    assert "latents: got the shape (4, 3), expected (M, 2)" in refused(lambda: student.generate(whole, np.zeros((4, 3))))
    assert "observation.state: got the shape (2,), expected (2, 2)" in refused(
        lambda: student.generate({STATE: np.zeros(2)}, np.zeros((4, 2)))
    )
    student._graph = lambda feed: np.full((16, 8, 2), np.nan, np.float32)
    assert "the student returned NaN or infinity; stop the robot" in refused(
        lambda: student.select_action({STATE: np.array([0.5, 0.0])})
    )


def test_a_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "robot")
    assert Student.load(tmp_path / "robot").exported.horizon == 8
