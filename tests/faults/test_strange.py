"""Faults that nobody asked for: what else happens to folders, files, limits and surroundings while a run is at work."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.table import Table, tries
from tests.faults.test_kills import left_over
from tests.faults.trying import ROOT, Prefixes, Server, random_moments


def _file_in_place(place: Path, moment: random.Random) -> None:
    (place / "runs/tiny/sample").write_text("mine")


def _link_to_itself(place: Path, moment: random.Random) -> None:
    (place / "runs/tiny/sample").symlink_to("sample")


def _pipe_in_place(place: Path, moment: random.Random) -> None:
    os.mkfifo(place / "runs/tiny/sample")


def _pipe_as_log_or_lock(place: Path, moment: random.Random) -> None:
    path = place / "runs/tiny" / moment.choice(("metrics.jsonl", ".lock"))
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _pipes_as_notes(place: Path, moment: random.Random) -> None:
    for name in ("demos", "teach"):
        path = place / f"runs/tiny/.{name}.hashed.json"
        path.unlink(missing_ok=True)
        os.mkfifo(path)


def _truncated_manifest(place: Path, moment: random.Random) -> None:
    path = place / "runs/tiny" / moment.choice(("demos", "starts", "teach")) / "manifest.json"
    path.write_bytes(path.read_bytes()[: moment.choice((0, 1, 100))])


def _flipped_bit(place: Path, moment: random.Random) -> None:
    """Anywhere in what the stage reads."""
    files = [each for name in ("demos", "teach") for each in sorted((place / "runs/tiny" / name).rglob("*"))
             if each.is_file() and each.name != "manifest.json" and each.stat().st_size]  # fmt: skip
    path = moment.choice(files)
    data = bytearray(path.read_bytes())
    data[moment.randrange(len(data))] ^= 1 << moment.randrange(8)
    path.write_bytes(data)


def _linked_run(place: Path, moment: random.Random) -> None:
    shutil.move(place / "runs/tiny", place / "elsewhere")
    (place / "runs/tiny").symlink_to(place / "elsewhere")


def _log_is_a_folder(place: Path, moment: random.Random) -> None:
    (place / "runs/tiny/metrics.jsonl").mkdir()


def _broken_hashes(place: Path, moment: random.Random) -> None:
    for path in (place / "runs/tiny").glob("*/manifest.json"):
        path.parent.with_name(f".{path.parent.name}.hashed.json").write_text("{")


def _stale_leftovers(place: Path, moment: random.Random) -> None:
    """Of a command that was killed long ago, with the number of a process that lives."""
    partial = next(iter((place / "runs/tiny").glob("*.partial")), None) or place / "runs/tiny/train/chamfer.00000000.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / f".resume.safetensors.{os.getpid()}.tmp").write_bytes(b"half")


Damage = Callable[[Path, random.Random], None]
STANDS, DAMAGED = "a file, link, pipe or folder stands in another's place", "a manifest, file or note is damaged"
STANDING: dict[str, tuple[str, str, Damage, str]] = {
    "a file stands in a stage's place": (STANDS, "sample", _file_in_place, "move it away"),
    "a link to itself stands in a stage's place": (STANDS, "sample", _link_to_itself, "move it away"),
    "a pipe stands in a stage's place": (STANDS, "sample", _pipe_in_place, "move it away"),
    "the log or the lock is a pipe": (STANDS, "train/teacher", _pipe_as_log_or_lock, "remove it"),
    "the notes of hashes are pipes": (STANDS, "sample", _pipes_as_notes, ""),
    "the run's folder is a link": (STANDS, "train/chamfer", _linked_run, ""),
    "the log is a folder": (STANDS, "train/teacher", _log_is_a_folder, "Is a directory"),
    "a truncated manifest": (DAMAGED, "sample", _truncated_manifest, "Delete"),
    "a flipped bit": (DAMAGED, "sample", _flipped_bit, "Delete"),
    "damaged notes of hashes": (DAMAGED, "sample", _broken_hashes, ""),
    "leftovers of a killed command": (DAMAGED, "train/chamfer", _stale_leftovers, ""),
}
"""By name: the row of the table, the stage that is run, what is done before, and what the message says; "" without any."""


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_there(server: Server, run: Prefixes, working: Path, table: Table, name: str) -> None:
    row, stage, damage, said = STANDING[name]
    for moment in random_moments(name, tries(1, 5 if row == STANDS else 8)):
        run.before(stage, working)
        damage(working, moment)
        outcome, wrong = server.run(working, run.argv, until=stage), []
        if (outcome.status == 0) != (said == "") or said not in outcome.line or "Traceback" in outcome.said:
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        if said == "Delete":
            shutil.rmtree(working / outcome.line.partition("Delete ")[2].partition(" to run")[0])
        elif said == "move it away":
            assert os.path.lexists(working / "runs/tiny/sample")
            (working / "runs/tiny/sample").unlink()
        elif said == "remove it":
            (working / outcome.line.removeprefix("error: ").partition(":")[0]).unlink()
        elif said:
            (working / "runs/tiny/metrics.jsonl").rmdir()
        again = server.run(working, run.argv, until=stage)
        if again.status != 0:
            wrong.append(f"again: {again.said[-1500:]}")
        for left in (working / "runs/tiny").rglob("*.00000000.partial"):
            shutil.rmtree(left)
        wrong += run.different(working, stage) + left_over(working)
        table.add(row, "run", wrong, outcome.line)
        assert not wrong, wrong


CHANGED = "meanwhile the config is edited, a folder renamed or deleted"
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
        table.add(CHANGED, "run", wrong, outcome.line)
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
    table.add(CHANGED, "run", wrong, "")
    assert not wrong, wrong


def test_a_checkpoint_is_damaged(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """By the disk, as it is written whole: the file is named, and without it training starts anew."""
    for moment in random_moments("checkpoint", tries(1)):
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
