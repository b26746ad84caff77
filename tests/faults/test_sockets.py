"""Sockets: what the processes of a run listen on is reachable from this machine alone, or by nobody."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.faults.trying import Prefixes, Server, wait_for_line


@pytest.mark.parametrize(("kind", "stage", "processes"), [
    ("run", "train/teacher", "2"), pytest.param("conversion", "sample", "2", marks=pytest.mark.faults),
])  # fmt: skip
def test_nothing_listens_to_other_machines(
    server: Server, working: Path, request: pytest.FixtureRequest, kind: str, stage: str, processes: str
) -> None:
    made: Prefixes = request.getfixturevalue(kind)
    made.before(stage, working)
    running = server.start(working, [*made.argv[:-1], processes], until=stage)
    assert wait_for_line(running, f"] {stage}")
    listening: set[str] = set()
    seen, end = 0, time.monotonic() + 3
    while time.monotonic() < end and not running.ended():
        for process in running.processes():
            try:
                found = process.net_connections("inet")
            except psutil.Error:
                continue
            seen += 1
            listening |= {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}
    outcome = running.wait()
    assert outcome.status == 0, outcome.said
    assert seen > 3 and listening <= {"127.0.0.1", "::1"}
