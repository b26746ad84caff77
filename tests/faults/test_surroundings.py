"""Surroundings: limits, signals of a terminal, variables, closed streams, copies; none of them costs what was done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.table import Table, tries
from tests.faults.test_disk import can_mount
from tests.faults.test_kills import left_over
from tests.faults.trying import ROOT, Prefixes, Server, contents, random_moments, wait_for_line

SHORT = "few open files, a limit of a file's size, no inodes"
LIMITS = {
    "few open files": ("RLIMIT_NOFILE", (11, 20), "error: Too many open files"),
    "a limit of a file's size": ("RLIMIT_FSIZE", (100, 4000), "error: File too large"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(server: Server, run: Prefixes, working: Path, table: Table, name: str) -> None:
    limit, values, line = LIMITS[name]
    for moment in random_moments(name, tries(1, 10)):
        run.before("sample", working)
        outcome = server.run(working, run.argv, until="sample", limits={limit: moment.randint(*values)})
        wrong = run.lost(working, "sample")
        told = outcome.status == 0 or (outcome.status == 2 and outcome.line.startswith(line))
        if not told or "Traceback" in outcome.said:
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        judged(server, run, "sample", working, table, (SHORT, "run"), wrong, outcome.line)


def judged(
    server: Server, run: Prefixes, stage: str, working: Path, table: Table, row: tuple[str, str], wrong: list[str], line: str
) -> None:
    """The same command without the fault must end as if nothing was. wrong: what is known to be so."""
    again = server.run(working, run.argv, until=stage)
    wrong += ([] if again.status == 0 else [again.said[-1500:]]) + run.different(working, stage) + left_over(working)
    table.add(*row, wrong, line)
    assert not wrong, wrong


def test_no_inodes_are_left(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    if not can_mount():
        pytest.skip("only root can mount a small disk")
    for moment in random_moments("inodes", tries(1, 10)):
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g", "tmpfs", str(working)], check=True)
        try:
            beside = working.with_name("beside")
            run.before("sample", beside)
            shutil.copytree(beside, working, dirs_exist_ok=True)
            shutil.rmtree(beside)
            used = os.statvfs(working)
            count = used.f_files - used.f_ffree + moment.randint(0, 8)
            subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", str(working)], check=True)
            outcome = server.run(working, run.argv, until="sample")
            subprocess.run(["mount", "-o", "remount,nr_inodes=100000", str(working)], check=True)
            wrong = run.lost(working, "sample")
            told = outcome.status == 0 or (outcome.status == 2 and "No space" in outcome.line)
            if not told or "Traceback" in outcome.said:
                wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
            again = server.run(working, run.argv, until="sample")
            wrong += ([] if again.status == 0 else [again.said[-1500:]]) + run.different(working, "sample") + left_over(working)
        finally:
            subprocess.run(["umount", "-l", str(working)], check=True)
        table.add(SHORT, "run", wrong, outcome.line)
        assert not wrong, wrong


STOPPED = "stopped and continued, the terminal is closed"


def test_stopped_and_continued(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    for moment in random_moments("stopped", tries(1, 15)):
        run.before("train/teacher", working)
        running = server.start(working, run.argv, until="train/teacher")
        assert wait_for_line(running, "] train/teacher")
        for _ in range(3):
            running.signal(signal.SIGSTOP, running.pid)
            time.sleep(moment.uniform(0, 0.3))
            running.signal(signal.SIGCONT, running.pid)
            time.sleep(moment.uniform(0, 0.1))
        outcome = running.wait()
        wrong = [] if outcome.status == 0 else [outcome.said[-1500:]]
        judged(server, run, "train/teacher", working, table, (STOPPED, "run: train/teacher"), wrong, outcome.line)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_the_terminal_is_closed(server: Server, run: Prefixes, working: Path, table: Table, processes: int) -> None:
    """SIGHUP ends one process at once, as SIGKILL does; no other one stays behind."""
    for moment in random_moments(f"hangup:{processes}", tries(1, 8)):
        run.before("train/teacher", working)
        running = server.start(working, [*run.argv[:-1], str(processes)], until="train/teacher")
        assert wait_for_line(running, "] train/teacher")
        time.sleep(moment.uniform(0, 0.8))
        running.signal(signal.SIGHUP, running.pid)
        outcome, wrong = running.wait(20), run.lost(working, "train/teacher")
        if outcome.status not in (0, 130, -signal.SIGHUP) or "Traceback" in outcome.said:
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        again = server.run(working, run.argv, until="train/teacher")
        wrong += [] if again.status == 0 else [again.said[-1500:]]
        wrong += left_over(working) + (run.different(working, "train/teacher") if processes == 1 else [])
        table.add(STOPPED, "run: train/teacher", wrong, outcome.line)
        assert not wrong, wrong


SURROUNDINGS = "other hash seed, locale, umask, TMPDIR, HOME, launcher's variables; closed, full or unread output"
VARIABLES = (("TMPDIR", "/nowhere"), ("HOME", "/nowhere"), ("HOME", ""), ("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("TERM", "dumb"),
             ("COLUMNS", "1"), ("MASTER_ADDR", "10.1.1.1"), ("TZ", "Pacific/Chatham"))  # fmt: skip
LEFT = ({"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "y"},
        {"LOCAL_RANK": "3"})


def test_other_variables_change_nothing(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """Those that a launcher left in the shell are told: else the command would wait for processes that nobody started."""
    for number, moment in enumerate(random_moments("variables", tries(2, 28))):
        left = number % 4 == 1
        given = moment.choice(LEFT) if left else dict(moment.sample(VARIABLES, 4))
        run.before("sample", working)
        outcome = server.run(working, run.argv, until="sample", environment=given)
        wrong = run.lost(working, "sample")
        if outcome.status != (2 if left else 0) or ("unset RANK WORLD_SIZE" in outcome.line) != left:
            wrong.append(f"{given}: status {outcome.status}, {outcome.said[-1500:]}")
        judged(server, run, "sample", working, table, (SURROUNDINGS, "run: sample"), wrong, outcome.line)


@pytest.mark.faults
def test_other_surroundings_give_the_same_bytes(run: Prefixes, working: Path, table: Table) -> None:
    """A real process: another hash seed, locale C, a strict umask, no folder for temporary files, nobody reading the output."""
    run.before("starts", working)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "77", "LC_ALL": "C", "PYTHONUTF8": "0",
                   "TMPDIR": "/nowhere", "HOME": "/nowhere"}  # fmt: skip
    program = f"umask 077; {sys.executable} {ROOT / 'distill.py'} sample {' '.join(run.argv)} | true"
    subprocess.run(program, shell=True, cwd=working, env=environment, check=True, capture_output=True)
    done = subprocess.run([sys.executable, str(ROOT / "distill.py"), "sample", *run.argv], cwd=working, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    got, expected = contents(working / run.folder), run.expected("sample")
    wrong = [done.stderr[-1500:]] if done.returncode else []
    wrong += [name for name in got if name in expected and got[name] != expected[name]]
    assert any(name.startswith("sample/") for name in got)
    table.add(SURROUNDINGS, "run", wrong, "")
    assert not wrong, wrong


@pytest.mark.faults
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "> /dev/full"])
def test_nobody_takes_the_output(server: Server, run: Prefixes, working: Path, table: Table, closed: str) -> None:
    """Without standard streams the next files that are opened would get the output; one that is full is told of."""
    run.before("sample", working)
    program = f"{sys.executable} {ROOT / 'distill.py'} sample {' '.join(run.argv)} {closed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, shell=True, cwd=working, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    wrong = [] if done.returncode == (2 if "full" in closed else 0) else [f"status {done.returncode}: {done.stderr[-1500:]}"]
    if "full" in closed and "error: No space left on device" not in done.stderr:
        wrong.append(done.stderr[-1500:])
    judged(server, run, "sample", working, table, (SURROUNDINGS, "run: sample"), wrong, "")


COPIES = "shards of another run are copied in, a hard-linked copy goes on"


def _other(server: Server, run: Prefixes, working: Path) -> None:
    outcome = server.run(working, [*run.argv, "--seed", "5", "--name", "other"], until="sample")
    assert outcome.status == 0, outcome.said


def test_shards_of_another_run_are_copied_in(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """They are whole and have their sums, but were drawn from another teacher: they are drawn again."""
    for moment in random_moments("shards", tries(1, 15)):
        run.before("sample", working)
        shutil.copytree(working / "runs/tiny", working / "runs/other")
        _other(server, run, working)
        _half_sampled(server, run, working, moment)
        (partial,) = (working / "runs/tiny").glob("sample.*.partial")
        for name in moment.sample([f"shard-{number:05d}" for number in range(6)], moment.randint(1, 5)):
            for suffix in (".safetensors", ".sha256"):
                shutil.copyfile(working / "runs/other/sample" / (name + suffix), partial / (name + suffix))
        judged(server, run, "sample", working, table, (COPIES, "run: sample"), [], "")


def _half_sampled(server: Server, run: Prefixes, working: Path, moment: random.Random) -> None:
    """Kill the stage `sample` while its folder is unfinished."""
    for _ in range(20):
        fault = {"kind": "kill", "at": moment.randint(60, 150), "signal": "SIGKILL"}
        server.run(working, run.argv, until="sample", fault=fault)
        if list((working / "runs/tiny").glob("sample.*.partial")):
            return
        shutil.rmtree(working / "runs/tiny/sample", ignore_errors=True)
    raise AssertionError("the stage is never unfinished")


def test_a_hard_linked_copy_goes_on(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """With another seed: every file that it changes is a new one, so the original stays as it was."""
    for _ in range(tries(1, 15)):
        run.before("sample", working)
        shutil.copytree(working / "runs/tiny", working / "runs/other", copy_function=os.link)
        _other(server, run, working)
        wrong = run.lost(working, "sample")
        judged(server, run, "sample", working, table, (COPIES, "run: sample"), wrong, "")


def test_a_name_that_is_no_utf8_is_refused(server: Server, run: Prefixes, working: Path) -> None:
    """Before any work: safetensors cannot read back what it writes there."""
    run.before("demos", working)
    outcome = server.run(working, [*run.argv, "--name", "ti\udcffny"], until="demos")
    assert outcome.status == 2 and "UTF-8" in outcome.line and outcome.said.count("\n") == 1
    assert [each.name for each in (working / "runs").iterdir()] == ["tiny"]
