"""`flow2one doctor --speed`: every mode that is there, timed and compared; the fastest is remembered for the runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.cli.export import ExportOptions, export_student
from distill.cli.main import main
from flow2one_runtime import backends


def _doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = main(["doctor", *arguments])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


@pytest.fixture
def student(make_student, tmp_path: Path) -> Path:
    make_student(codes=4, shares=True).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_a_student_is_timed_in_the_modes_that_are_there_and_the_others_say_why_not(student: Path, capsys) -> None:
    few = ["--calls", "5", "--warmup", "1"]
    code, lines, error = _doctor(capsys, "--speed", str(student), "--modes", "pytorch", "cuda_graph", *few)
    assert (code, error) == (0, "")
    assert lines[0] == "one_step_student for avoid: outlier_rejection, 8 samples a call, 8 actions executed; one CPU thread"
    assert [line.split()[0] for line in lines[2:6]] == ["mode", "eager", "pytorch", "cuda_graph"]
    assert lines[5].endswith("not timed: needs an NVIDIA GPU")
    found = json.loads((student / "speed.json").read_text())
    assert found["best"] in ("eager", "pytorch") and found["samples"] == 8 and found["latency"]["calls"] == 5
    assert found["latency"]["modes"]["pytorch"]["parity"]["holds"]
    assert lines[6] == f"fastest: {found['best']}; remembered in {student / 'speed.json'}"


def test_the_runtime_takes_the_backend_that_was_fastest_on_this_machine(student: Path, tmp_path: Path, capsys) -> None:
    folder = export_student(ExportOptions(student, tmp_path / "exported", ()), lambda line: None)
    code, _, error = _doctor(capsys, "--speed", str(folder), "--modes", "onnxruntime", "--calls", "3", "--warmup", "1")
    assert (code, error) == (0, "")
    assert set(backends.measured_ms(folder)) == {"onnxruntime"}
    found = json.loads((folder / "speed.json").read_text())
    found["hardware"] = "another machine"
    (folder / "speed.json").write_text(json.dumps(found))
    assert backends.measured_ms(folder) == {}
    (folder / "speed.json").write_text("{")
    assert backends.measured_ms(folder) == {}


@pytest.mark.parametrize(("more", "message"), [
    (["--modes", "onnxruntme"], "--modes: unknown run mode 'onnxruntme'"),
    (["--calls", "0"], "--calls: got 0, expected at least 1"),
])  # fmt: skip
def test_invalid_options_are_one_line(student: Path, capsys, more: list[str], message: str) -> None:
    code, lines, error = _doctor(capsys, "--speed", str(student), *more)
    assert code == 2 and lines == [] and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_folder_without_a_student_is_one_line(tmp_path: Path, capsys) -> None:
    for folder, message in ((tmp_path / "none", "is no folder"), (tmp_path, "config.json")):
        code, lines, error = _doctor(capsys, "--speed", str(folder))
        assert code == 2 and lines == [] and message in error and error.count("\n") == 1
