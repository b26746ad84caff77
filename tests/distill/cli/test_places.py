"""Folders that cannot be written, files in the way and locks: one line of every command, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.distill.test_api import HOLD
from tests.envs.recorded.writers import as_zarr, walk

Main = Callable[[Sequence[str]], int]
COMMANDS = {
    "run": (["demos", "--config", "avoid", "--processes", "1", "--runs-dir"], "{}", "--runs-dir, --name: "),
    "convert": (["convert", "--teacher", "hold.py:build", "--observations", "x.zarr", "--out"], "{}", "--out: "),
    "compare": (["compare", "hold.py:build", "hold.py:build@2", "--observations", "x.zarr", "--out"], "{}", "--out: "),
    "export": (["export", "--student", "student", "--formats", "--out"], "{}", "--out: "),
    "check-data": (["check-data", "x.zarr", "--out"], "{}/page.html", "--out: "),
}


@pytest.fixture
def place(make_student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    as_zarr(tmp_path / "x.zarr", walk(10, 12, fps=10))
    (tmp_path / "hold.py").write_text(HOLD)
    make_student().save_pretrained(tmp_path / "student")
    return tmp_path


def refused(main: Main, capsys: pytest.CaptureFixture[str], name: str, target: str) -> str:
    words, pattern, _ = COMMANDS[name]
    assert main([*words, pattern.format(target)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_way_is_told(name: str, main: Main, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").touch()
    line = refused(main, capsys, name, "file/out")
    assert f"{COMMANDS[name][2]}{place / 'file'} is a file, expected a folder; name another place for file/out" in line
    assert (place / "file").read_bytes() == b""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_told(
    name: str, main: Main, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "closed").mkdir()
    may = os.access
    # root may write everywhere: what other users are told by the system
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place / "closed" and may(path, mode))
    line = refused(main, capsys, name, "closed/out")
    assert f"{COMMANDS[name][2]}{place / 'closed'} cannot be written; name another place for closed/out" in line
    assert list((place / "closed").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="other users are refused earlier, by the check of permissions")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_made_is_told(name: str, main: Main, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(main, capsys, name, "/proc/nowhere/out")
    assert "cannot be written (No such file or directory); name another" in line


@pytest.mark.parametrize(("name", "folder"), [("run", "runs/avoid-seed0"), ("convert", "out"), ("compare", "out")])
def test_a_folder_that_another_process_works_in_is_told(
    name: str, folder: str, main: Main, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / folder).mkdir(parents=True)
    with (place / folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(main, capsys, name, folder.split("/")[0])
    assert "another flow2one is working in" in line and "with convert and compare --out" in line
