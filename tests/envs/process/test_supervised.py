"""A supervised process: it answers in time or not at all, its exit status has words, and it ends with all it started."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.process.supervised import ProcessGone, SupervisedProcess
from envs.process.wire import WireError

PROGRAM = Path(__file__).parent / "faulty_program.py"


@pytest.fixture
def process() -> Iterator[SupervisedProcess]:
    started = SupervisedProcess([sys.executable], PROGRAM, capture_output=True)
    yield started
    started.stop(0.0)


def test_the_first_answer_is_what_the_program_opened(process: SupervisedProcess) -> None:
    assert process.exchange({}, None, 20.0) == ({"ready": True}, {})
    assert process.exchange({"command": "x"}, None, 20.0)[0]["answers"] == 1
    assert process.status is None and process.status_text == "its process was ended"
    assert "starting" in process.printed_tail()


def test_a_message_that_cannot_be_sent_is_refused_and_disturbs_nothing(process: SupervisedProcess) -> None:
    process.exchange({}, None, 20.0)
    with pytest.raises(ValueError) as error:
        process.exchange({"number": float("inf")}, None, 20.0)
    assert not isinstance(error.value, WireError)
    assert process.exchange({"command": "x"}, None, 20.0)[0]["answers"] == 1


@pytest.mark.parametrize(("command", "status", "words"), [("die", -9, "signal SIGKILL"), ("leave", 3, "exit status 3")])
def test_a_process_that_ends_says_how(process: SupervisedProcess, command: str, status: int, words: str) -> None:
    process.exchange({}, None, 20.0)
    with pytest.raises(ProcessGone, match="the other process is gone|Broken pipe|reset"):
        process.exchange({"command": command}, None, 20.0)
    process.wait(20.0)
    assert (process.status, process.status_text) == (status, words)


def test_it_ends_by_itself_when_it_is_stopped_and_a_second_stop_does_nothing(process: SupervisedProcess) -> None:
    process.exchange({}, None, 20.0)
    process.stop(20.0)
    assert process.status in (0, 1)
    process.stop(20.0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_one_that_hangs_is_killed_once_its_time_is_up(process: SupervisedProcess) -> None:
    process.exchange({}, None, 20.0)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        process.exchange({"command": "hang"}, None, 0.2)
    process.signal(signal.SIGSTOP)  # so that it cannot notice that its owner is gone
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # one thread may run on until another has taken the signal
    process.stop(0.2)
    assert process.status_text == "signal SIGKILL" and time.monotonic() - begin < 10
