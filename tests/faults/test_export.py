"""An export that is killed or whose disk fails leaves no folder that looks like one; the next export is as if nothing was."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest

from flow2one_runtime.exported import read_exported
from tests.faults.commands import EXPORT_ARGV
from tests.faults.table import Table, tries
from tests.faults.test_disk import FAILING
from tests.faults.test_kills import KILLED, SIGNALS
from tests.faults.trying import Outcome, Prefixes, Server, random_moments

pytestmark = pytest.mark.faults


@pytest.fixture
def place(run: Prefixes, working: Path) -> Path:
    """A working folder with a finished run."""
    run.before("report", working)
    shutil.copytree(run.whole / "report", working / run.folder / "report")
    return working


@pytest.fixture(scope="module")
def undisturbed(server: Server, run: Prefixes, working: Path) -> tuple[dict[str, str], float]:
    """The exported files, and how long that took [s]."""
    run.before("report", working)
    shutil.copytree(run.whole / "report", working / run.folder / "report")
    began = time.monotonic()
    outcome = server.run(working, EXPORT_ARGV)
    assert outcome.status == 0, outcome.said
    return _files(working / "exported"), time.monotonic() - began


def _files(folder: Path) -> dict[str, str]:
    """sha256 of the files but for the date and the machine in two of them."""
    read_exported(folder)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
            if path.name not in ("export.json", "README.md")}  # fmt: skip
    told = json.loads((folder / "export.json").read_text())
    told.pop("made"), told.pop("files")
    return {**sums, "export.json": json.dumps(told, sort_keys=True)}


def _judge(server: Server, place: Path, expected: dict[str, str], outcome: Outcome, killed: bool) -> list[str]:
    wrong = ["Traceback: " + outcome.said[-1500:]] if "Traceback" in outcome.said else []
    if (place / "exported").exists():
        if _files(place / "exported") != expected:
            wrong.append("an exported folder that is not whole")
        shutil.rmtree(place / "exported")
    if not killed and list(place.glob(".exported*")):
        wrong.append(f"left over: {list(place.glob('.exported*'))}")
    again = server.run(place, EXPORT_ARGV)
    if again.status != 0 or _files(place / "exported") != expected:
        wrong.append(f"again: status {again.status}, {again.said[-1500:]}")
    shutil.rmtree(place / "exported", ignore_errors=True)
    for left in place.glob(".exported*"):  # of SIGKILL
        shutil.rmtree(left)
    return wrong


def test_an_export_is_killed(
    server: Server, place: Path, undisturbed: tuple[dict[str, str], float], table: Table
) -> None:
    expected, seconds = undisturbed
    for number, moment in enumerate(random_moments("export", tries(3))):
        sent = SIGNALS[number % len(SIGNALS)]
        running = server.start(place, EXPORT_ARGV)
        time.sleep(moment.uniform(0, seconds))
        running.signal(sent, running.pid)
        outcome = running.wait()
        wrong = _judge(server, place, expected, outcome, sent.name == "SIGKILL")
        table.add(KILLED, "export", wrong, outcome.line)
        assert not wrong, wrong


@pytest.mark.parametrize("fault", FAILING)
def test_the_disk_of_an_export_fails(
    server: Server, place: Path, undisturbed: tuple[dict[str, str], float], table: Table, fault: str
) -> None:
    settings, line = FAILING[fault]
    for moment in random_moments(f"export:{fault}", tries(1, 6)):
        outcome = server.run(place, EXPORT_ARGV, fault={**settings, "at": moment.randint(1, 12)})
        wrong = _judge(server, place, undisturbed[0], outcome, False)
        if outcome.status != 0 and not (outcome.line.startswith("error: ") and line in outcome.line):
            wrong.append(f"status {outcome.status}: {outcome.said[-1500:]}")
        table.add("disk faults", "export", wrong, outcome.line)
        assert not wrong, wrong
