"""Faults that nobody asked for: what else happens to folders, files, limits and surroundings while a run is at work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.table import Table, tries
from tests.faults.test_disk import can_mount
from tests.faults.test_kills import left_over
from tests.faults.trying import ROOT, Outcome, Prefixes, Server, contents, random_moments, wait_for_line


def _file_in_place(place: Path) -> None:
    (place / "runs/tiny/sample").write_text("mine")


def _truncated_manifest(place: Path) -> None:
    (place / "runs/tiny/teach/manifest.json").write_bytes(b"")


def _flipped_bit(place: Path) -> None:
    path = place / "runs/tiny/teach/model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _linked_run(place: Path) -> None:
    shutil.move(place / "runs/tiny", place / "elsewhere")
    (place / "runs/tiny").symlink_to(place / "elsewhere")


def _log_is_a_folder(place: Path) -> None:
    (place / "runs/tiny/metrics.jsonl").mkdir()


def _broken_hashes(place: Path) -> None:
    for path in (place / "runs/tiny").glob("*/manifest.json"):
        path.parent.with_name(f".{path.parent.name}.hashed.json").write_text("{")


def _stale_leftovers(place: Path) -> None:
    """Of a command that was killed long ago, with the number of a process that lives."""
    partial = next(iter((place / "runs/tiny").glob("*.partial")), None) or place / "runs/tiny/train/chamfer.00000000.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / f".resume.safetensors.{os.getpid()}.tmp").write_bytes(b"half")


STANDING: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a file stands in a stage's place": ("sample", _file_in_place, "move it away"),
    "a manifest of 0 bytes": ("sample", _truncated_manifest, "Delete"),
    "a flipped bit": ("sample", _flipped_bit, "Delete"),
    "the run's folder is a link": ("train/chamfer", _linked_run, ""),
    "the log is a folder": ("train/teacher", _log_is_a_folder, "Is a directory"),
    "damaged notes of hashes": ("sample", _broken_hashes, ""),
    "leftovers of a killed command": ("train/chamfer", _stale_leftovers, ""),
}
"""By name: the stage that is run, what is done before, and what the message says; "" without any."""


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_there(server: Server, run: Prefixes, working: Path, table: Table, name: str) -> None:
    stage, damage, said = STANDING[name]
    run.before(stage, working)
    damage(working)
    outcome, wrong = server.run(working, run.argv, until=stage), []
    if (outcome.status == 0) != (said == "") or said not in outcome.line or "Traceback" in outcome.said:
        wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
    if said == "move it away":
        assert (working / "runs/tiny/sample").read_text() == "mine"
        (working / "runs/tiny/sample").unlink()
    elif said == "Delete":
        shutil.rmtree(working / outcome.line.partition("Delete ")[2].partition(" to run")[0])
    elif said:
        (working / "runs/tiny/metrics.jsonl").rmdir()
    again = server.run(working, run.argv, until=stage)
    if again.status != 0:
        wrong.append(f"again: {again.said[-1500:]}")
    for left in (working / "runs/tiny").rglob("*.00000000.partial"):
        shutil.rmtree(left)
    wrong += run.different(working, stage) + left_over(working)
    table.add(name, f"run: {stage}", wrong, outcome.line)
    assert not wrong, wrong


MEANWHILE = {
    "the config is edited": ("train/teacher", "echo 'seed: 5' >> tiny.yaml", "sed -i '$d' tiny.yaml"),
    "the run's folder is renamed": ("sample", "mv runs/tiny runs/moved", "rm -rf runs/tiny; mv runs/moved runs/tiny"),
    "the unfinished stage is deleted": ("sample", "rm -rf runs/tiny/sample.*.partial", ""),
    "the working folder is deleted": ("train/teacher", "", ""),
}
"""By name: the stage, the shell command that runs at a random moment of it, and the one that mends it."""


@pytest.mark.parametrize("name", MEANWHILE)
def test_what_happens_meanwhile(server: Server, run: Prefixes, working: Path, table: Table, name: str) -> None:
    stage, command, mend = MEANWHILE[name]
    for moment in random_moments(name, tries(1, 10)):
        run.before(stage, working)
        if name == "the working folder is deleted":
            _in_a_deleted_folder(server, run, working, table, stage)
            return
        fault: dict[str, Any] = {"kind": "call", "at": moment.randint(5, 60), "command": command}
        outcome, wrong = server.run(working, run.argv, until=stage, fault=fault), []
        if outcome.status not in (0, 2) or "Traceback" in outcome.said or (outcome.status == 2 and not outcome.line):
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        if (working / "runs/moved").exists() or "seed" in (working / "tiny.yaml").read_text():
            subprocess.run(mend, shell=True, cwd=working, check=True, capture_output=True)
        again = server.run(working, run.argv, until=stage)
        if again.status != 0:
            wrong.append(f"again: {again.said[-1500:]}")
        wrong += run.different(working, stage) + left_over(working)
        table.add(name, f"run: {stage}", wrong, outcome.line)
        assert not wrong, wrong


def _in_a_deleted_folder(server: Server, run: Prefixes, working: Path, table: Table, stage: str) -> None:
    """The folder in which the command was started is gone; the run's is elsewhere and named in full."""
    gone = working.with_name("gone")
    gone.mkdir(exist_ok=True)
    argv = ["--config", str(working / "tiny.yaml"), "--processes", "1", "--runs-dir", str(working / "runs")]
    program = f"cd {gone} && rmdir {gone} && exec {sys.executable} {ROOT / 'distill.py'} demos {' '.join(argv)}"
    done = subprocess.run(program, shell=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          check=False)  # fmt: skip
    wrong = [] if done.returncode in (0, 2) and "Traceback" not in done.stderr else [done.stderr[-1500:]]
    wrong += run.lost(working, stage)
    table.add("the working folder is deleted", f"run: {stage}", wrong, "")
    assert not wrong, wrong


LIMITS: dict[str, tuple[str, dict[str, int], str]] = {
    "few open files": ("sample", {"RLIMIT_NOFILE": 14}, "error: Too many open files"),
    "a limit of a file's size": ("sample", {"RLIMIT_FSIZE": 1 << 10}, "error: File too large"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(server: Server, run: Prefixes, working: Path, table: Table, name: str) -> None:
    stage, limits, line = LIMITS[name]
    run.before(stage, working)
    outcome, wrong = server.run(working, run.argv, until=stage, limits=limits), run.lost(working, stage)
    if outcome.status not in (0, 2) or "Traceback" in outcome.said or (outcome.status and not outcome.line.startswith(line)):
        wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
    again = server.run(working, run.argv, until=stage)
    wrong += ([] if again.status == 0 else [again.said[-1500:]]) + run.different(working, stage) + left_over(working)
    table.add(name, f"run: {stage}", wrong, outcome.line)
    assert not wrong, wrong


def test_no_inodes_are_left(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    if not can_mount():
        pytest.skip("only root can mount a small disk")
    for moment in random_moments("inodes", tries(1, 6)):
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
        table.add("no inodes are left", "run: sample", wrong, outcome.line)
        assert not wrong, wrong


def test_stopped_and_continued(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    run.before("train/teacher", working)
    running = server.start(working, run.argv, until="train/teacher")
    assert wait_for_line(running, "] train/teacher")
    for _ in range(3):
        running.signal(signal.SIGSTOP, running.pid)
        time.sleep(0.2)
        running.signal(signal.SIGCONT, running.pid)
        time.sleep(0.05)
    outcome: Outcome = running.wait()
    wrong = ([] if outcome.status == 0 else [outcome.said[-1500:]]) + run.different(working, "train/teacher")
    table.add("stopped and continued", "run: train/teacher", wrong, outcome.line)
    assert not wrong, wrong


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
    table.add("other hash seed, locale, umask; no TMPDIR, no reader", "run: sample", wrong, "")
    assert not wrong, wrong


def test_a_checkpoint_is_damaged(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """By the disk, as it is written whole: the file is named, and without it training starts anew."""
    for moment in random_moments("checkpoint", tries(1, 6)):
        run.before("train/teacher", working)
        fault = {"kind": "loss", "at": moment.randint(3, 9), "value": "nan"}
        server.run(working, run.argv, until="train/teacher", fault=fault)
        path = next((working / run.folder).rglob("resume.safetensors"))
        data = path.read_bytes()
        path.write_bytes(data[: moment.randrange(len(data))])
        outcome, wrong = server.run(working, run.argv, until="train/teacher"), []
        if outcome.status != 2 or "resume.safetensors" not in outcome.line or "Traceback" in outcome.said:
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        path.unlink(missing_ok=True)
        again = server.run(working, run.argv, until="train/teacher")
        wrong += ([] if again.status == 0 else [again.said[-1500:]]) + run.different(working, "train/teacher")
        table.add("a checkpoint is damaged", "run: training", wrong, outcome.line)
        assert not wrong, wrong
