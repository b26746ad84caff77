"""`distill.py export`: the folder is whole or not there, says how to call what is in it, and every refusal is one line."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file

from distill.cli.export import ExportOptions, export_student
from distill.store.manifest import commit, partial_folder
from students import load_student
from students.export.graph import FILES

ROOT = Path(__file__).parents[3]
Main = Callable[[Sequence[str]], int]


@pytest.fixture
def student(make_student, tmp_path: Path) -> Path:
    """The folder of a student with codes and shares, in no run."""
    make_student(codes=8, latent_size=2, shares=True).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def options(student: Path, tmp_path: Path) -> ExportOptions:
    """An export of our own folder alone, which takes no time."""
    return ExportOptions(student, tmp_path / "exported", formats=())


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_says_how_to_call_what_is_in_it(options: ExportOptions) -> None:
    said: list[str] = []
    folder = export_student(replace(options, formats=("torch",)), said.append)
    told = json.loads((folder / "export.json").read_text())
    names = {"README.md", "config.json", "model.safetensors", "student.torch.pt2"}
    assert {path.name for path in folder.iterdir()} == names | {"export.json"}
    assert told["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}
    assert [(each["name"], each["shape"]) for each in told["inputs"]] == [
        ("observation.state", [1, 2, 2]), ("latents", [1, "samples", 2])
    ]  # fmt: skip
    assert told["inputs"][0]["names"] == ["tool_x_m", "tool_y_m"] and told["output"]["shape"] == [1, "samples", 8, 2]
    # the statistics: actions from 0.2 to 0.8 and from -0.4 to 0.2
    assert told["action"]["centre"] == pytest.approx([0.5, -0.1]) and told["action"]["scale"] == pytest.approx([0.3, 0.3])
    assert told["selection"] == {"kind": "outlier_rejection", "candidates": 8, "forget_every": 5, "execution_horizon": 8,
                                 "outlier_ratio": 4.0, "mode_duplicates": 3, "same_plan_distance": 0.01,
                                 "source": "default"}  # fmt: skip
    parity = told["formats"]["torch"]["parity"]
    assert parity["inputs"] == 1000 and parity["largest_normalised"] <= parity["tolerance_normalised"] == 1e-4
    assert any("torch: differs from PyTorch by at most" in line for line in said)
    card = (folder / "README.md").read_text()
    assert "not measured" in card and "student.torch.pt2" in card
    assert (folder / "model.safetensors").read_bytes() == (options.student / "model.safetensors").read_bytes()
    assert load_student(folder).codes == 8


def test_a_student_with_cameras_names_all_that_it_sees(
    options: ExportOptions, make_student, make_teacher, seeing_shape
) -> None:
    shutil.rmtree(options.student)
    make_student(make_teacher(encoder=seeing_shape.encoder)).save_pretrained(options.student)
    told = json.loads((export_student(options, print) / "export.json").read_text())
    assert {each["name"]: each["shape"] for each in told["inputs"]} == {
        "observation.state": [1, 2, 2], "observation.images.front": [1, 2, 3, 16, 24],
        "observation.images.wrist": [1, 2, 3, 16, 24],
        "observation.depth.front": [1, 2, 1, 16, 24], "observation.points": [1, 2, 32, 6], "latents": [1, "samples", 5],
    }  # fmt: skip
    assert told["formats"] == {}


def test_a_student_of_a_run_has_its_figures(tiny_run, tmp_path: Path, main: Main) -> None:
    folder = tiny_run.run / "distill/chamfer"
    assert main(["export", "--student", str(folder), "--out", str(tmp_path / "out"), "--formats"]) == 0
    summary = json.loads((tiny_run.run / "evaluate/chamfer/result.json").read_text())["summary"]
    card, told = (tmp_path / "out/README.md").read_text(), json.loads((tmp_path / "out/export.json").read_text())
    assert f"| {summary['successes'] / 6:.1%} (" in card and "| 6 |" in card and "teacher, 4 steps" in card
    assert "run `avoid-seed0`, seed 0; date: 2" in card and "cores" in card
    assert told["selection"]["source"] == "run" and told["selection"]["kind"] == "outlier_rejection"


# -- what is refused, in one line, with nothing left behind ------------------------------------------------------------


def refused(main: Main, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line that the command says; checked: status 2, and no file more or less in the folder."""
    before = sorted(folder.rglob("*"))
    assert main(["export", *arguments]) == 2
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def without_statistics(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["normaliser.state_low"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")


def with_statistics_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["normaliser.action_high"]
    save_file(weights, folder / "model.safetensors")


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def a_teacher(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kind": "flow_teacher"}))


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\x80\x04\x95")  # how a pickle begins


def changed_stage(folder: Path) -> None:
    partial = partial_folder(folder, "key")
    shutil.copytree(folder, partial)
    shutil.rmtree(folder)
    commit(folder, "key", {"execution_horizon": 8}, 1.0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_statistics, r"\['normaliser\.state_low'\] hold values that are not finite"),
        (with_statistics_missing, r"does not fit its config\.json: it lacks .*'normaliser\.action_high'"),
        (truncated, r"is not a whole safetensors file"),
        (a_teacher, r"describes a 'flow_teacher', expected one of \['flow_map_student', 'one_step_student'\]"),
        (binary_config, r"config\.json.*not readable|invalid start byte"),
        (shutil.rmtree, r"no policy at .*student: expected a folder with config\.json and model\.safetensors"),
        (changed_stage, r"config\.json was changed since it was written"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_whole_student_is_refused(
    spoil: Callable[[Path], None], said: str, student: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(student)
    line = refused(main, capsys, tmp_path, "--student", str(student), "--out", str(tmp_path / "out"), "--formats", "torch")
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--formats onnx tensorrt", "unknown 'tensorrt'; expected some of ['onnx', 'call', 'torch', 'aoti']"),
        ("--formats torch torch", "got a name twice"),
        ("--formats torch --public", "got --public without --push-to-hub user/name"),
        ("--formats torch --push-to-hub avoid", "got 'avoid', expected user/name"),
    ],
)
def test_flags_that_are_wrong_are_refused_before_any_work(
    flags: str, said: str, student: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(main, capsys, tmp_path, "--student", str(student), "--out", str(tmp_path / "out"), *flags.split())
    assert said in line


def test_a_missing_onnx_is_refused_before_any_work(
    student: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused(main, capsys, tmp_path, "--student", str(student), "--out", str(tmp_path / "out"))
    assert line == "error: format onnx: onnxscript not installed; pip install onnxscript"


def test_an_existing_folder_is_never_overwritten(
    options: ExportOptions, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    export_student(options, print)
    capsys.readouterr()
    line = refused(main, capsys, tmp_path, "--student", str(options.student), "--out", str(options.out), "--formats")
    assert "already exists and is not overwritten" in line


def test_a_graph_that_differs_is_refused_and_nothing_of_it_stays(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(name, student, program, folder):  # what a runtime with a fault in it would give
        (folder / FILES[name]).write_bytes(b"half")
        return lambda observation, latents: student(observation, latents) + 1e-3

    monkeypatch.setattr("distill.cli.export.write_format", spoilt)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"torch: the graph differs by more than 0\.0001 half ranges"):
        export_student(replace(options, formats=("torch",)), print)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_export_leaves_nothing(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.cli.export.write_json", interrupted)  # the last file, with all the others there
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        export_student(options, print)
    assert sorted(tmp_path.rglob("*")) == before


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_export_command_of_the_page_is_understood() -> None:
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/export.md").read_text(), re.MULTILINE | re.DOTALL))
    lines = [line.split(" #")[0] for line in blocks.replace("\\\n", " ").splitlines() if "flow2one export" in line]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line)
        found = tyro.cli(ExportOptions, args=words[words.index("export") + 1 :])
        assert set(found.formats) <= set(FILES)
