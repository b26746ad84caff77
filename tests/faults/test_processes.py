"""Several processes: any of them is killed; another number goes on; two commands in one folder; a loss that is not finite."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.table import Table, tries
from tests.faults.test_kills import CONVERSION_STAGES, RUN_STAGES, SIGNALS, left_over
from tests.faults.trying import Prefixes, Server, contents, random_moments, wait_for_line

TWO = ["--processes", "2"]
SAME_FOR_ANY_NUMBER = ("demos", "starts", "reference", "sample")
"""Stages whose bytes do not depend on the number of processes; elsewhere sums are rounded in another order."""


def _two(argv: list[str]) -> list[str]:
    return [*argv[: argv.index("--processes")], *TWO]


def _ends_well(place: Path, made: Prefixes, stage: str) -> list[str]:
    """What is wrong after a command that ended: stages that were finished before, and those that must have the same bytes."""
    expected, got = made.expected(stage), contents(place / made.folder)
    same = [name for name in expected if name.startswith(tuple(f"{each}/" for each in SAME_FOR_ANY_NUMBER))]
    wrong = [name for name in same if got.get(name) != expected[name]]
    return wrong + [f"{name} is missing" for name in expected if name not in got] + left_over(place)


PROCESSES = [pytest.param(stage, marks=() if stage == "train/teacher" else pytest.mark.faults)
             for stage in RUN_STAGES if stage not in ("latency", "frontier")]  # fmt: skip


@pytest.mark.parametrize("stage", PROCESSES)
def test_any_process_of_two_is_killed(server: Server, run: Prefixes, working: Path, table: Table, stage: str) -> None:
    """The launcher or a worker; afterwards one process goes on, or again two."""
    for number, moment in enumerate(random_moments(f"two:{stage}", tries(1, 3))):
        sent = SIGNALS[number % len(SIGNALS)]
        run.before(stage, working)
        running = server.start(working, _two(run.argv), until=stage)
        if wait_for_line(running, f"] {stage}"):
            time.sleep(moment.uniform(0, 1.5))
            processes = running.processes()
            if sent == signal.SIGINT:
                running.interrupt_group(sent)
            elif processes:
                running.signal(sent, moment.choice(processes).pid)
        outcome, wrong = running.wait(), run.lost(working, stage)
        if "Traceback" in outcome.said or (sent == signal.SIGINT and outcome.status not in (0, 130)):
            wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
        again = server.run(working, _two(run.argv) if number % 2 else run.argv, until=stage)
        if again.status != 0:
            wrong.append(f"resume: status {again.status}, {again.said[-1500:]}")
        wrong += _ends_well(working, run, stage)
        table.add("any of 2 processes is killed; 1 or 2 go on", "every stage of a run", wrong, outcome.line)
        assert not wrong, wrong


@pytest.mark.faults
@pytest.mark.parametrize("stage", CONVERSION_STAGES)
def test_the_process_of_an_adapter_dies(
    server: Server, conversion: Prefixes, working: Path, table: Table, stage: str
) -> None:
    for number, moment in enumerate(random_moments(f"adapter:{stage}", tries(1, 3))):
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)[number % 3]
        conversion.before(stage, working)
        running = server.start(working, conversion.argv, until=stage)
        if wait_for_line(running, f"] {stage}"):
            time.sleep(moment.uniform(0, 0.6))
            children = [each for each in running.processes() if each.pid != running.pid]
            if children:
                running.signal(sent, moment.choice(children).pid)
        outcome, wrong = running.wait(), conversion.lost(working, stage)
        told = outcome.status == 0 or (outcome.status == 2 and "is gone" in outcome.line)
        if not told or "Traceback" in outcome.said:
            wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
        again = server.run(working, conversion.argv, until=stage)
        if again.status != 0:
            wrong.append(f"resume: status {again.status}, {again.said[-1500:]}")
        wrong += conversion.different(working, stage) + left_over(working)
        table.add("the adapter's process dies", "every stage of a conversion", wrong, outcome.line)
        assert not wrong, wrong


GARBAGE = """
import socket as _socket

def _broken(*_, **__):
    {what}

class Broken:
    horizon, action_size, num_steps = 8, 2, 4
    def velocity(self, observation, x, t):
        _broken.calls = getattr(_broken, "calls", 0) + 1
        if _broken.calls > {after}:
            {what}
        return -x

def build():
    return Broken()
"""
ADAPTERS = {
    "exits": "import os; os._exit(3)",
    "hangs": "import time; time.sleep(1000)",
    "answers NaN": "return x * float('nan')",
    "answers the wrong shape": "return x[:, :3]",
    "answers text": "return 'chunk'",
    "raises": "raise RuntimeError('out of memory')",
    "takes all memory": "import torch; return torch.empty(1 << 50)",
    "writes to its socket": "import os; [os.write(number, b'garbage' * 99) for number in map(int, os.listdir('/proc/self/fd')) "
                            "if number > 2 and 'socket' in os.readlink(f'/proc/self/fd/{number}')]; return -x",
}  # fmt: skip
MISBEHAVING = [pytest.param(each, marks=pytest.mark.faults) for each in ADAPTERS]  # fmt: skip


@pytest.mark.parametrize("what", MISBEHAVING)
def test_an_adapter_misbehaves(server: Server, conversion: Prefixes, working: Path, table: Table, what: str) -> None:
    argv = [each for each in conversion.argv if each != "both"]
    argv[argv.index("--student.kind") :] = ["--student.kind", "fresh", "--processes", "1", "--adapter.timeout-s", "2"]
    for moment in random_moments(f"adapter:{what}", tries(1, 4)):
        conversion.before("observations", working)
        adapter = working / "my_policy.py"
        adapter.write_text(GARBAGE.format(what=ADAPTERS[what], after=10**9))
        good = server.run(working, argv, until="sample")
        assert good.status == 0, good.said
        before = contents(working / "out")
        for path in (working / "out").iterdir():
            if path.name.startswith("sample"):
                shutil.rmtree(path)
        adapter.write_text(GARBAGE.format(what=ADAPTERS[what], after=moment.randint(0, 20)))
        outcome, wrong = server.run(working, argv, until="sample"), []
        if outcome.status not in (0, 2) or "Traceback" in outcome.said or (outcome.status == 2 and not outcome.line):
            wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
        adapter.write_text(GARBAGE.format(what=ADAPTERS[what], after=10**9))
        again = server.run(working, argv, until="sample")
        after = contents(working / "out")
        if again.status != 0 or any(after.get(name) != value for name, value in before.items()):
            wrong.append(f"resume: status {again.status}, {again.said[-1500:]}")
        table.add("an adapter exits, hangs, raises, answers garbage", "conversion: sample", wrong, outcome.line)
        assert not wrong, wrong


@pytest.mark.parametrize(("stage", "value", "processes"), [
    ("train/teacher", "nan", 1), ("train/chamfer", "inf", 1), pytest.param("train/teacher", "inf", 2, marks=pytest.mark.faults),
])  # fmt: skip
def test_a_loss_is_not_finite(
    server: Server, run: Prefixes, working: Path, table: Table, stage: str, value: str, processes: int
) -> None:
    """On one process of several: all stop before the optimizer steps, and the last checkpoint stays as it was."""
    for moment in random_moments(f"loss:{stage}:{value}", tries(1, 12)):
        run.before(stage, working)
        step = moment.randint(2, 9)
        fault = {"kind": "loss", "at": step, "value": value, "rank": moment.randrange(processes)}
        outcome = server.run(working, run.argv if processes == 1 else _two(run.argv), until=stage, fault=fault)
        wrong = run.lost(working, stage)
        named = f"at step {step - 1}"
        if outcome.status != 2 or "Traceback" in outcome.said or named not in outcome.line or outcome.said.count("error:") != 1:
            wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
        saved = _saved_step(working / run.folder)
        if saved != step - 1:  # the tiny training saves after every step
            wrong.append(f"the checkpoint is that of step {saved}, expected {step - 1}")
        again = server.run(working, run.argv, until=stage)
        if again.status != 0:
            wrong.append(f"resume: status {again.status}, {again.said[-1500:]}")
        wrong += run.different(working, stage) if processes == 1 else _ends_well(working, run, stage)
        table.add("a loss is NaN or infinite, on 1 of 1 or 2 processes", "run: training", wrong, outcome.line)
        assert not wrong, wrong


def _saved_step(run: Path) -> int:
    from safetensors import safe_open

    path = next(run.rglob("resume.safetensors"))
    with safe_open(str(path), framework="np") as file:
        return int(json.loads(file.metadata()["state"])["step"])


def test_two_commands_in_one_folder(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    for moment in random_moments("two commands", tries(1)):
        stage = moment.choice([each for each in RUN_STAGES if each != "report"])
        run.before(stage, working)
        first = server.start(working, run.argv, until=stage)
        assert wait_for_line(first, "stages") or first.ended()
        second = server.run(working, run.argv, until=stage, log=working.with_name("second.log"))
        outcome = first.wait()
        wrong = [] if outcome.status == 0 else [outcome.said[-1500:]]
        if second.status not in (0, 2) or (second.status == 2 and "another flow2one is working in" not in second.line):
            wrong.append(f"status {second.status}: {second.said[-1500:]}")
        wrong += run.different(working, stage) + left_over(working)
        table.add("two commands in one folder", "run: any", wrong, second.line)
        assert not wrong, wrong


def test_the_clock_goes_back(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    for number, moment in enumerate(random_moments("clock", tries(1))):
        stage = RUN_STAGES[number % len(RUN_STAGES)] if number else "train/teacher"
        run.before(stage, working)
        fault = {"kind": "clock", "at": moment.randint(1, 30), "seconds": moment.choice([10.0, 86400.0, 1.7e9])}
        outcome = server.run(working, run.argv, until=stage, fault=fault)
        wrong = [] if outcome.status == 0 else [f"status {outcome.status}: {outcome.said[-1500:]}"]
        wrong += run.different(working, stage) + left_over(working)
        table.add("the clock goes back", "run: any", wrong, outcome.line)
        assert not wrong, wrong
