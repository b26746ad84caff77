"""Killed, terminated and interrupted at random moments of every stage: afterwards the same command ends as if nothing was."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.table import Table, tries
from tests.faults.trying import Prefixes, Running, Server, random_moments, wait_for_line

RUN_STAGES = ("demos", "train/teacher", "starts", "teach", "reference", "evaluate/teacher_2", "sample", "train/chamfer",
              "distill/chamfer", "evaluate/chamfer", "latency", "frontier", "generalisation", "report")  # fmt: skip
CONVERSION_STAGES = ("observations", "reference", "evaluate/teacher_4", "sample", "encode", "train/in_place",
                     "distill/in_place", "evaluate/in_place", "train/chamfer", "distill/chamfer", "evaluate/chamfer", "latency",
                     "report")  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLED = ", ".join(each.name for each in SIGNALS) + " in turn"
"""The fault's name in the table."""
ENDED = {signal.SIGKILL: (-signal.SIGKILL, ""), signal.SIGTERM: (143, "terminated; the same command resumes from here"),
         signal.SIGINT: (130, "interrupted; the same command resumes from here")}  # fmt: skip

Strike = Callable[[Running, random.Random, int], None]


def to_itself(running: Running, moment: random.Random, number: int) -> None:
    """To the command's process; Ctrl-C reaches the whole group."""
    if number == signal.SIGINT:
        running.interrupt_group(number)
    else:
        running.signal(number, running.pid)


def disturbed(
    server: Server, made: Prefixes, stage: str, working: Path, table: Table, count: int, kind: str
) -> None:
    """`count` tries at one stage, by time and by file operation in turn, each followed by the undisturbed command."""
    seconds, operations = measured(server, made, stage, working)
    for number, moment in enumerate(random_moments(f"{kind}:{stage}", count)):
        sent = SIGNALS[number % len(SIGNALS)]
        made.before(stage, working)
        if number // len(SIGNALS) % 2:
            fault = {"kind": "kill", "at": moment.randint(1, operations), "signal": sent.name}
            outcome = server.run(working, made.argv, until=stage, fault=fault)
        else:
            running = server.start(working, made.argv, until=stage)
            if wait_for_line(running, f"] {stage}"):
                time.sleep(moment.uniform(0, seconds))
                to_itself(running, moment, sent)
            outcome = running.wait()
        wrong = made.lost(working, stage)
        status, line = ENDED[sent]
        if outcome.status == 0:  # it ended before
            line = ""
        elif outcome.status == 2 and "is gone (signal SIG" in outcome.line:  # it was the process of the adapter
            line = outcome.line
        elif (outcome.status, outcome.line) != (status, line) or "Traceback" in outcome.said:
            wrong.append(f"{sent.name}: status {outcome.status}, {outcome.said[-1500:]}")
        again = server.run(working, made.argv, until=stage)
        if again.status != 0:
            wrong.append(f"resume: status {again.status}, {again.said[-1500:]}")
        wrong += made.different(working, stage) + left_over(working)
        table.add(KILLED, f"{kind}: {stage}", wrong, line)
        assert not wrong, f"{sent.name} number {number}: {wrong}"


def measured(server: Server, made: Prefixes, stage: str, working: Path) -> tuple[float, int]:
    """How long a stage takes from its first line [s], and how many file operations the command makes up to its end."""
    made.before(stage, working)
    count = working.with_name("operations")
    fault = {"kind": "kill", "at": 0, "signal": "SIGKILL", "count": str(count)}
    running = server.start(working, made.argv, until=stage, fault=fault)
    assert wait_for_line(running, f"] {stage}"), running.said
    began = time.monotonic()
    outcome = running.wait()
    assert outcome.status == 0, outcome.said
    assert made.different(working, stage) == []
    return time.monotonic() - began, int(count.read_text())


def left_over(working: Path) -> list[str]:
    """Files of unfinished work, after the command ended well."""
    return [str(path.relative_to(working)) for pattern in ("*.partial", "*.tmp") for path in working.rglob(pattern)]


@pytest.mark.parametrize("stage", RUN_STAGES)
def test_a_stage_of_a_run_is_killed(server: Server, run: Prefixes, working: Path, table: Table, stage: str) -> None:
    assert set(run.names) == set(RUN_STAGES)
    disturbed(server, run, stage, working, table, tries(1), "run")


@pytest.mark.faults
@pytest.mark.parametrize("stage", CONVERSION_STAGES)
def test_a_stage_of_a_conversion_is_killed(
    server: Server, conversion: Prefixes, working: Path, table: Table, stage: str
) -> None:
    assert set(conversion.names) == set(CONVERSION_STAGES)
    disturbed(server, conversion, stage, working, table, tries(3), "conversion")
