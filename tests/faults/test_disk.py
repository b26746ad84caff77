"""Disks that fail: full, broken, read-only, files that vanish; each ends in one line and costs nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distill.store.manifest import verify
from tests.faults.table import Table, tries
from tests.faults.test_kills import CONVERSION_STAGES, RUN_STAGES, left_over, measured
from tests.faults.trying import Outcome, Prefixes, Server, random_moments

FEW = ("sample",)
"""Stages of the short version."""
STAGES = [
    pytest.param("run", stage, marks=() if stage in FEW else pytest.mark.faults, id=f"run-{stage}") for stage in RUN_STAGES
] + [pytest.param("conversion", stage, marks=pytest.mark.faults, id=f"conversion-{stage}") for stage in CONVERSION_STAGES]


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Prefixes:
    """The command of a test's parameter `kind`."""
    found: Prefixes = request.getfixturevalue(request.getfixturevalue("kind"))
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[Any]:
    """`folder` as a file system of its own in memory; gives a function that sets its size [bytes]. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this process may mount a file system in memory."""
    return os.geteuid() == 0 and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode == 0


def after(
    server: Server, made: Prefixes, stage: str, working: Path, table: Table, fault: str, outcome: Outcome, line: str
) -> None:
    """What the try showed and left, and the same command without the fault. line: what its message must say."""
    wrong = made.lost(working, stage)
    told = outcome.line.startswith("error: ") and line in outcome.line  # an adapter that saves its policy is named before
    if outcome.status != 0 and (outcome.status != 2 or not told or "Traceback" in outcome.said):
        wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
    again = server.run(working, made.argv, until=stage)
    if again.status != 0:
        wrong.append(f"resume: status {again.status}, {again.said[-2500:]}")
    wrong += made.different(working, stage) + left_over(working)
    table.add(fault, f"every stage of a {'run' if made.folder != 'out' else 'conversion'}", wrong, outcome.line)
    assert not wrong, f"{fault}: {wrong}"


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_the_disk_is_full(server: Server, made: Prefixes, working: Path, table: Table, kind: str, stage: str) -> None:
    if not can_mount():
        pytest.skip("only root can mount a small disk; see the test of failing writes")
    shutil.rmtree(working, ignore_errors=True)
    for moment in random_moments(f"full:{kind}:{stage}", tries(1, 3)):
        with small_disk(working) as sized:
            _copied(made, stage, working)
            before = shutil.disk_usage(working).used
            outcome = server.run(working, made.argv, until=stage)  # a conversion looks how much space there is
            assert outcome.status == 0, outcome.said
            needed = shutil.disk_usage(working).used - before
            for path in working.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            _copied(made, stage, working)
            sized(max(4096, before + 4096 * moment.randint(0, needed // 4096)))
            outcome = server.run(working, made.argv, until=stage)
            sized("8g")
            after(server, made, stage, working, table, "full disk", outcome, "No space left on device")
    shutil.rmtree(working, ignore_errors=True)


def _copied(made: Prefixes, stage: str, working: Path) -> None:
    """As `Prefixes.before`, into a folder that is a mount point."""
    beside = working.with_name("beside")
    made.before(stage, beside)
    shutil.copytree(beside, working, dirs_exist_ok=True)
    shutil.rmtree(beside)


FAILING = {
    "full disk, of a patched file": ({"kind": "write", "errno": errno.ENOSPC}, "No space left on device"),
    "write error": ({"kind": "write", "errno": errno.EIO, "once": True}, "Input/output error"),
    "quota": ({"kind": "write", "errno": errno.EDQUOT}, "Disk quota exceeded"),
    "read error": ({"kind": "read", "errno": errno.EIO}, ""),
    "short writes": ({"kind": "short", "bytes": 1}, ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAILING)
@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_files_fail(
    server: Server, made: Prefixes, working: Path, table: Table, kind: str, stage: str, fault: str
) -> None:
    settings, line = FAILING[fault]
    for moment in random_moments(f"{fault}:{kind}:{stage}", tries(1, 3)):
        made.before(stage, working)
        settings = {**settings, "at": moment.randint(1, 40)}
        outcome = server.run(working, made.argv, until=stage, fault=settings)
        if fault == "short writes":
            assert outcome.status == 0, outcome.said
        after(server, made, stage, working, table, fault, outcome, line)


def named_stranger(line: str) -> str:
    """The folder that a message asks to move away: without its manifest a stage is none of ours."""
    return line.removeprefix("error: ").partition(" exists but is no finished stage")[0] if "move it away" in line else ""


def refused(made: Prefixes, run: Path) -> tuple[str, ...]:
    """The stages whose damage is told when they are opened."""
    found = []
    for stage in made.names:
        try:
            verify(run / stage)
        except ValueError:
            found.append(f"{stage}/")
    return tuple(found)


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_a_file_vanishes(server: Server, made: Prefixes, working: Path, table: Table, kind: str, stage: str) -> None:
    """One that is being written or was just read. Where it belonged to a finished stage, the user is told and deletes that."""
    _, operations = measured(server, made, stage, working)
    for moment in random_moments(f"vanish:{kind}:{stage}", tries(1, 3)):
        made.before(stage, working)
        outcome = server.run(working, made.argv, until=stage, fault={"kind": "vanish", "at": moment.randint(1, operations)})
        wrong = []
        if outcome.status not in (0, 2) or "Traceback" in outcome.said or (outcome.status == 2 and not outcome.line):
            wrong.append(f"status {outcome.status}: {outcome.said[-2500:]}")
        again, told = server.run(working, made.argv, until=stage), ""
        for _ in range(3):
            if again.status == 0:
                break
            told = again.line
            named = told.partition("Delete ")[2].partition(" to run")[0] or named_stranger(told)
            if not named:
                wrong.append(f"resume: status {again.status}, {again.said[-2500:]}")
                break
            shutil.rmtree(working / named)
            again = server.run(working, made.argv, until=stage)
        damaged = refused(made, working / made.folder)  # of earlier ones that this stage does not read nothing is said yet
        if f"{stage}/" in damaged:  # it vanished after the stage was done
            shutil.rmtree(working / made.folder / stage)
            again = server.run(working, made.argv, until=stage)
            damaged = refused(made, working / made.folder)
        wrong += [name for name in made.different(working, stage) if not name.startswith(damaged)] + left_over(working)
        table.add("a file vanishes", f"every stage of a {kind}", wrong, outcome.line or told)
        assert not wrong, wrong


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_the_folder_is_read_only(
    server: Server, made: Prefixes, working: Path, table: Table, kind: str, stage: str
) -> None:
    """Root may write anywhere, so a read-only file system stands for it."""
    if not can_mount():
        pytest.skip("only root can mount a file system as read-only")
    for _ in range(tries(1, 3)):
        shutil.rmtree(working, ignore_errors=True)
        with small_disk(working):
            _copied(made, stage, working)
            subprocess.run(["mount", "-o", "remount,ro", str(working)], check=True)
            outcome = server.run(working, made.argv, until=stage)
            assert outcome.status == 2
            subprocess.run(["mount", "-o", "remount,rw", str(working)], check=True)
            after(server, made, stage, working, table, "read-only folder", outcome, "")
    shutil.rmtree(working, ignore_errors=True)
