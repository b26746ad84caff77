"""Policy folders: every way in which one can be broken is refused with the file and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from students.one_step import OneStepStudent
from teachers.flow import FlowTeacher


@pytest.fixture
def folder(make_teacher, tmp_path: Path) -> Path:
    make_teacher().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def _config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(str(folder / "model.safetensors"))
    change(weights)
    save_file(weights, str(folder / "model.safetensors"))


def _truncate(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def _poison(weights: dict[str, torch.Tensor]) -> None:
    weights["trunk.to_tokens.weight"][3, 1] = torch.nan


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no policy at .*folder with config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not readable JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "describes a 'list'"),
    "other kind": (lambda folder: _config(folder, lambda c: c.update(kind="vae")), "describes a 'vae', expected a"),
    "other schema": (lambda folder: _config(folder, lambda c: c.update(schema_version=99)), "schema_version 99"),
    "no shape": (lambda folder: _config(folder, lambda c: c.pop("shape")), "does not describe a flow_teacher.*shape"),
    "foreign key": (lambda folder: _config(folder, lambda c: c["shape"].update(colour=1)), "does not describe.*colour"),
    "other solver": (lambda folder: _config(folder, lambda c: c.update(solver="rk9")), "unknown solver 'rk9'"),
    "impossible shape": (lambda folder: _config(folder, lambda c: c["shape"].update(horizon=9)), "horizon 9"),
    "other width": (lambda folder: _config(folder, lambda c: c["shape"].update(width=32)), "does not fit its config"),
    "config is binary": (lambda folder: (folder / "config.json").write_bytes(b"\x80\xff"), "config.json is not readable"),
    "negative width": (lambda folder: _config(folder, lambda c: c["shape"].update(width=-4)), "config.json .*width: got -4"),
    "endless width": (lambda folder: _config(folder, lambda c: c["shape"].update(width=2**40)), "larger network"),
    "endless depth": (lambda folder: _config(folder, lambda c: c["shape"].update(depth=2**31)), "larger network"),
    "many blocks": (lambda folder: _config(folder, lambda c: c["shape"].update(depth=5000)), "larger network"),
    "no period": (lambda folder: _config(folder, lambda c: c["shape"].update(dt_s=0)), "dt_s: got 0, expected a control"),
    "one weight": (lambda folder: _config(folder, lambda c: c["shape"].update(action_weights=[1])), "action_weights: got 1"),
    "no statistics": (
        lambda folder: _weights(folder, lambda w: [w.pop(name) for name in list(w) if "normaliser" in name]),
        r"model.safetensors does not fit its config.json: it lacks \['normaliser.state_low'"),
    "upside down": (
        lambda folder: _weights(folder, lambda w: w["normaliser.action_low"].add_(9)), "expected the least and the m"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "empty weights": (lambda folder: _truncate(folder, 0.0), "model.safetensors is not a whole safetensors file"),
    "half the header": (lambda folder: _truncate(folder, 0.01), "model.safetensors is not a whole safetensors file"),
    "half the weights": (lambda folder: _truncate(folder, 0.5), "model.safetensors is not a whole safetensors file"),
    "NaN weight": (lambda folder: _weights(folder, _poison), r"\['trunk.to_tokens.weight'\] hold values that are not"),
    "NaN statistics": (
        lambda folder: _weights(folder, lambda w: w["normaliser.state_low"].fill_(torch.nan)), "normaliser.state_low"),
    "tensor missing": (lambda folder: _weights(folder, lambda w: w.pop("trunk.position")), r"it lacks \['trunk.position'\]"),
    "tensor too many": (lambda folder: _weights(folder, lambda w: w.update(more=torch.ones(1))), r"unexpected \['more'\]"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused(folder: Path, how: str) -> None:
    FlowTeacher.from_pretrained(folder)
    damage, message = BROKEN[how]
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        FlowTeacher.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no policy at .*nowhere"):
        FlowTeacher.from_pretrained(tmp_path / "nowhere")


def test_a_teacher_is_not_taken_for_a_student_nor_the_other_way_round(make_student, folder: Path, tmp_path: Path) -> None:
    make_student(FlowTeacher.from_pretrained(folder), 4).save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="describes a 'flow_teacher', expected a 'one_step_student'"):
        OneStepStudent.from_pretrained(folder)
    with pytest.raises(ValueError, match="describes a 'one_step_student', expected a 'flow_teacher'"):
        FlowTeacher.from_pretrained(tmp_path / "student")


def test_what_is_written_is_json_and_safetensors_and_nothing_else(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "flow_teacher" and config["shape"]["task"] == "avoid" and config["solver"] == "euler"
    weights = load_file(str(folder / "model.safetensors"))
    assert set(weights) == set(FlowTeacher.from_pretrained(folder).state_dict())
