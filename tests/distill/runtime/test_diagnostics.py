"""What ends a command unexpectedly: one line, and one file that tells the rest without saying whose machine it was."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distill.cli import command
from distill.cli.main import main
from distill.runtime import diagnostics
from distill.runtime.diagnostics import note_line, note_place, without_paths


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], int]:
    """Runs a command whose stage `sample` raises; its run's folder is tmp_path / run."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(diagnostics, "_lines", diagnostics.deque(maxlen=diagnostics.LAST_LINES))
    monkeypatch.setattr(diagnostics, "_at", {})
    (tmp_path / "run").mkdir()

    def call(error: BaseException) -> int:
        def run_command(arguments: Sequence[str], leading: bool) -> int:
            note_place(folder=tmp_path / "run", stage="sample")
            for number in range(50):
                note_line(f"[{number}/50] line, in {tmp_path}/secret/{number}")
            raise error

        monkeypatch.setattr(command, "run_command", run_command)
        return main(["sample", "--config", str(tmp_path / "mine.yaml")])

    return call


def test_an_unknown_error_leaves_one_file_and_says_where(failing, tmp_path: Path, capsys) -> None:
    assert failing(RuntimeError(f"broken {tmp_path}/deep/file")) == 1
    said = capsys.readouterr().err
    files = list((tmp_path / "run").iterdir())
    assert len(files) == 1 and re.fullmatch(r"crash-\d{8}-\d{6}-\d+\.txt", files[0].name)
    assert said.startswith("flow2one stopped on an unexpected RuntimeError: broken") and str(files[0]) in said
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    text = files[0].read_text()
    for part in ("command   flow2one sample --config", "stage     sample", "torch 2", "python    3.", "RuntimeError: broken",
                 "[49/50] line", "[10/50] line"):  # fmt: skip
        assert part in text, part
    assert "[9/50] line" not in text  # the last forty
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text and sys.prefix not in text


def test_where_the_run_cannot_be_written_the_file_lies_elsewhere(failing, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "run").rmdir()
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    assert failing(RuntimeError("broken")) == 1
    assert len(list((tmp_path / "other").iterdir())) == 1 and str(tmp_path / "other") in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert failing(RuntimeError("broken")) == 1
    assert capsys.readouterr().err.endswith("; no file with details could be written\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "error: No space left on device: runs/x; mend that, then"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "error: Permission denied: runs/x; mend that, then"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
         "error: No space left on device; mend that, then"),
        (FloatingPointError("teach: the gradient's norm is nan"), "error: teach: the gradient's norm is nan"),
        (ValueError("wrong"), "error: wrong"),
    ],
)  # fmt: skip
def test_what_is_known_is_one_line_and_no_file(failing, tmp_path: Path, capsys, error: Exception, said: str) -> None:
    assert failing(error) == 2
    assert capsys.readouterr().err.startswith(said)
    assert list((tmp_path / "run").iterdir()) == []


def test_sigterm_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run_command(arguments: Sequence[str], leading: bool) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(command, "run_command", run_command)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["sample"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "\nterminated; the same command resumes from here\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("File \"/home/me/private/project/a.py\", line 3", "File \"<...>/a.py\", line 3"),
        ("see (/data/secret/x) and /tmp/a-b/c.d/", "see (<...>/x) and <...>/"),
        ("https://example.org/a/b and 1/2", "https://example.org/a/b and 1/2"),
        (f"{sys.prefix}/lib/x.py", "<python>/lib/x.py"),
        (f"{Path(__file__).parents[3]}/distill/config.py", "<flow2one>/distill/config.py"),
    ],
)
def test_paths_are_shortened(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert without_paths(text) == expected
