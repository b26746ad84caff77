"""The doctor of RLBench, case by case: made-up folders and packages, real interpreters, no screen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from distill.cli.command import read_command
from distill.cli.doctor import rlbench as doctor
from distill.cli.doctor.machine import Check
from distill.cli.main import main

ALL_THERE = {name: f"/there/{name}" for name in (*doctor.MODULES, "pyrep", "rlbench")}
TOLD = {"python": [3, 8, 10], "modules": ALL_THERE, "backend": True}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A CoppeliaSim as it is unpacked."""
    folder = tmp_path / "CoppeliaSim_Edu_V4_1_0_Ubuntu20_04"
    (folder / "system").mkdir(parents=True)
    (folder / "libcoppeliaSim.so").touch()
    (folder / "libcoppeliaSim.so.1").touch()
    (folder / "system" / "usrset.txt").write_text("allowOldEduRelease=7501\n")
    return folder


def told(check: Check) -> tuple[str, str, str]:
    return check.status, check.found, check.advice


def test_the_folder_of_coppeliasim(root: Path, tmp_path: Path) -> None:
    assert doctor.root_check({"COPPELIASIM_ROOT": str(root)}) == Check("COPPELIASIM_ROOT", "ok", str(root))
    status, found, advice = told(doctor.root_check({}))
    assert (status, found) == ("missing", "not set") and "export COPPELIASIM_ROOT=" in advice
    assert told(doctor.root_check({"COPPELIASIM_ROOT": "/nowhere"}))[1] == "/nowhere is not a folder"
    outer = told(doctor.root_check({"COPPELIASIM_ROOT": str(tmp_path)}))
    assert outer[0] == "missing" and outer[2] == f"export COPPELIASIM_ROOT={root}"
    (root / "libcoppeliaSim.so").unlink()
    assert "the folder that holds libcoppeliaSim.so" in told(doctor.root_check({"COPPELIASIM_ROOT": str(root)}))[2]


def test_the_version_of_coppeliasim(root: Path) -> None:
    assert told(doctor.version_check({"COPPELIASIM_ROOT": str(root)})) == ("ok", "V4_1_0", "")
    (root / "system" / "usrset.txt").write_text("")
    status, _, advice = told(doctor.version_check({"COPPELIASIM_ROOT": str(root)}))
    assert status == "optional" and "allowOldEduRelease=7501" in advice
    newer = root.rename(root.parent / "CoppeliaSim_Edu_V4_9_0_rev6_Ubuntu22_04")
    status, found, advice = told(doctor.version_check({"COPPELIASIM_ROOT": str(newer)}))
    assert status == "missing" and "V4_9_0" in found and "V4_1_0" in advice


def test_the_librarys_second_name(root: Path) -> None:
    assert doctor.library_check({"COPPELIASIM_ROOT": str(root)}).status == "ok"
    (root / "libcoppeliaSim.so.1").unlink()
    assert "ln -s libcoppeliaSim.so libcoppeliaSim.so.1" in doctor.library_check({"COPPELIASIM_ROOT": str(root)}).advice


@pytest.mark.parametrize(
    ("environment", "status", "advice"),
    [
        ({}, "ok", ""),
        ({"QT_QPA_PLATFORM": "xcb", "QT_QPA_PLATFORM_PLUGIN_PATH": "/sim"}, "ok", ""),
        ({"QT_QPA_PLATFORM": "offscreen"}, "optional", "unset QT_QPA_PLATFORM"),  # flow2one leaves it out itself
        ({"QT_QPA_PLATFORM": "wayland"}, "missing", "unset QT_QPA_PLATFORM"),
        ({"QT_QPA_PLATFORM_PLUGIN_PATH": "/x/cv2/qt/plugins"}, "missing", "opencv-python-headless"),
    ],
)
def test_qt(environment: dict[str, str], status: str, advice: str) -> None:
    check = doctor.qt_check({"COPPELIASIM_ROOT": "/sim", **environment})
    assert check.status == status and advice in check.advice


def test_pyrep_and_the_strangers_pyrep() -> None:
    assert doctor.pyrep_check(TOLD).status == "ok"
    status, found, advice = told(doctor.pyrep_check({**TOLD, "backend": False}))
    assert (status, found) == ("missing", "/there/pyrep belongs to another project")
    assert advice.startswith("pip uninstall -y pyrep; ") and "git+https://github.com/stepjam/PyRep.git" in advice
    status, _, advice = told(doctor.pyrep_check({**TOLD, "modules": {}}))
    assert status == "missing" and "never `pip install pyrep`" in advice
    assert "academic" in doctor.rlbench_check({**TOLD, "modules": {}}).advice and doctor.rlbench_check(TOLD).status == "ok"


def test_the_interpreter_and_its_modules() -> None:
    assert doctor.interpreter_check(["python3.8"], TOLD).status == "ok"
    assert doctor.interpreter_check(["python3.7"], {**TOLD, "python": [3, 7, 9]}).status == "missing"
    assert doctor.module_checks(TOLD)[0].status == "ok"
    (check,) = doctor.module_checks({"modules": {**ALL_THERE, "PIL": None, "gymnasium": None}})
    assert check.status == "missing" and check.advice == "pip install Pillow gymnasium"


@pytest.mark.parametrize(
    ("environment", "answer", "expected"),
    [
        ({}, {}, [("display", "missing", "Xvfb :99 -screen 0 1280x1024x24 +extension GLX")]),
        ({"DISPLAY": ":9"}, {"library": False}, [("display", "optional", "libx11-6")]),
        ({"DISPLAY": ":9"}, {"library": True, "opened": False}, [("display", "missing", "start one there: Xvfb")]),
        (
            {"DISPLAY": ":9"}, {"library": True, "opened": True, "glx": False},
            [("display", "ok", ""), ("GLX", "missing", "libgl1-mesa-dri")],
        ),
        ({"DISPLAY": ":9"}, {"library": True, "opened": True, "glx": True}, [("display", "ok", ""), ("GLX", "ok", "")]),
    ],
)  # fmt: skip
def test_the_display(environment: dict[str, str], answer: dict[str, bool], expected: list[tuple[str, str, str]]) -> None:
    found = doctor.display_checks(environment, answer)
    assert [(check.name, check.status) for check in found] == [(name, status) for name, status, _ in expected]
    assert all(advice in check.advice for check, (_, _, advice) in zip(found, expected, strict=True))


def test_a_display_that_is_not_there_is_really_asked() -> None:
    answer = doctor.probe([sys.executable], doctor.GLX, {**os.environ, "DISPLAY": ":4711"})
    assert answer["opened"] is False


def test_the_strangers_package_is_told_from_the_real_one_by_looking(tmp_path: Path) -> None:
    """Both would be imported by the same name; neither is imported."""
    for name, real in (("stranger", False), ("real", True)):
        (tmp_path / name / "pyrep" / "backend").mkdir(parents=True)
        (tmp_path / name / "pyrep" / "__init__.py").write_text("raise SystemExit('imported')")
        if real:
            (tmp_path / name / "pyrep" / "backend" / "sim.py").touch()
        found = doctor.probe([sys.executable], doctor.LOOK % (doctor.MODULES,), {"PYTHONPATH": str(tmp_path / name)})
        assert found["backend"] is real and found["modules"]["rlbench"] is None
        assert tuple(found["python"]) == sys.version_info[:3]
        assert doctor.pyrep_check(found).status == ("ok" if real else "missing")


@pytest.mark.parametrize(
    ("printed", "advice"),
    [
        ("ImportError('libcoppeliaSim.so.1: cannot open shared object file')", "install PyRep again"),
        ("ImportError('No module named pyrep.backend._sim_cffi')", "PyRep was not built"),
        ("RuntimeError('something else')", "see docs/rlbench.md"),
    ],
)
def test_what_the_import_dies_of(tmp_path: Path, printed: str, advice: str) -> None:
    (tmp_path / "pyrep.py").write_text(f"raise {printed}")
    check = doctor.import_check([sys.executable], {"PYTHONPATH": str(tmp_path)})
    assert check.status == "missing" and advice in check.advice
    (tmp_path / "pyrep.py").write_text("__version__ = '4.1.0.3'")
    (tmp_path / "rlbench.py").write_text("__version__ = '1.2.0'")
    assert doctor.import_check([sys.executable], {"PYTHONPATH": str(tmp_path)}).found == "PyRep 4.1.0.3, RLBench 1.2.0"


def test_an_interpreter_that_is_not_there() -> None:
    found = doctor.rlbench_checks("/nowhere/python", {})
    assert found[-1].name == "interpreter" and "/nowhere/python" in found[-1].found and "--rlbench.python" in found[-1].advice


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("COPPELIASIM_ROOT", "DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert read_command(["doctor", "--rlbench"])[0] == "doctor --rlbench" and read_command(["doctor"])[0] == "doctor"
    assert main(["doctor", "--rlbench"]) == 1
    printed = capsys.readouterr().out
    assert "MISSING  COPPELIASIM_ROOT" in printed and "MISSING  display" in printed and "Not ready: " in printed
    for check in doctor.rlbench_checks("", {}):
        assert bool(check.advice) == (check.status != "ok") and "\n" not in check.advice + check.found
