"""Ctrl-C leaves one line: while packages load, in a stage, of one process and of several, and with an adapter's process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ADAPTER = """
import torch
class Slow:
    horizon, action_size, num_steps = 8, 2, 4
    def velocity(self, observation, x, t):
        return -x
def build():
    return Slow()
"""


def _interrupted(command: list[str], environment: dict[str, str], folder: Path, after: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command that gets Ctrl-C, as all processes of a terminal do, at a line of its output.

    after: the line's beginning; "": while packages are loading (before that, Python itself starts, and says so).
    """
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout is not None
    told = []
    if after:
        while not (told and told[-1].startswith(after)):
            told.append(process.stdout.readline())
            assert told[-1], process.communicate()[1]
    while not after and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.05)
    time.sleep(0.6)
    os.killpg(process.pid, signal.SIGINT)
    try:
        rest, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, "".join(told) + rest, errors


def _lines(errors: str) -> list[str]:
    """What stands on the terminal but progress bars."""
    return [line for line in errors.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


@pytest.mark.parametrize(("processes", "after"), [("1", ""), ("1", "[1/"), ("2", ""), ("2", "[1/"), ("2", "[2/")])
def test_an_interrupted_run_says_one_line(whole, tiny_config, tmp_path: Path, processes: str, after: str) -> None:
    command = whole.command("--config", str(tiny_config), "--processes", processes, "--teacher.training-steps", "5000")
    status, _, errors = _interrupted(command, whole.environment(), tmp_path, after)
    assert (status, _lines(errors)) == (130, ["interrupted; the same command resumes from here"])


@pytest.mark.parametrize("after", ["", "[1/", "[2/"])
def test_an_interrupted_conversion_says_one_line(whole, copied_run, tmp_path: Path, after: str) -> None:
    (tmp_path / "mine.py").write_text(ADAPTER)
    command = whole.command("convert", "--teacher", "mine.py:build", "--observations", str(copied_run.run / "demos"), "--out",
                            "out", "--sample.num-observations", "4000")  # fmt: skip
    status, _, errors = _interrupted(command, whole.environment(), tmp_path, after)
    assert (status, _lines(errors)) == (130, ["interrupted; the same command resumes from here"])


@pytest.mark.parametrize("command", ["doctor", "-h", "export"])
def test_short_commands_say_one_line_too(whole, tmp_path: Path, command: str) -> None:
    line = [command, "--student", "nowhere", "--out", "there"] if command == "export" else [command]
    status, _, errors = _interrupted(whole.command(*line), whole.environment(), tmp_path, "")
    assert (status, _lines(errors)) == (130, ["interrupted"])
