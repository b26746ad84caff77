"""Long runs: thousands of rollouts and hundreds of restarts need no more memory and open files than the first ones."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from distill.evaluation.policies import StudentPolicy
from distill.evaluation.rollouts import run_episodes
from envs.cameras.specs import CameraSettings
from envs.panda.recording import stored_starts
from envs.process.worker import Worker, WorkerSettings
from tests.faults.table import Table, tries
from tests.faults.test_kills import left_over
from tests.faults.trying import Prefixes, Server, random_moments, wait_for_line

pytestmark = pytest.mark.faults
PROGRAM = Path(__file__).parents[1] / "envs" / "process" / "faulty_program.py"


def _used() -> tuple[float, int]:
    """Resident memory [MB] and open files of this process."""
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cameras", [None, CameraSettings(cameras=("front",), width=32, height=24, backend="raycast")],
                         ids=["state", "renderer"])  # fmt: skip
def test_two_thousand_rollouts(make_student, monkeypatch: pytest.MonkeyPatch, cameras: CameraSettings | None) -> None:
    policy = StudentPolicy(make_student(), "student")
    starts, count = stored_starts("avoid", 0, "test", 20), 2000
    measured = []
    with torch.inference_mode():
        for first in range(0, count, 200):
            episodes = run_episodes("avoid", policy, np.repeat(starts, 10, 0), range(200), 8, first, cameras=cameras)
            assert len(episodes) == 200
            measured.append(_used())
    (early_mb, early_files), (late_mb, late_files) = measured[1], measured[-1]
    assert late_files <= early_files and late_mb - early_mb < 30, measured


def test_hundreds_of_workers_leave_nothing_open() -> None:
    settings = WorkerSettings(start_s=30, step_s=10, grace_s=0.1)
    measured = []
    for number in range(60):
        with Worker(PROGRAM, {}, settings) as worker:
            worker.start()
            if number % 2:
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
        measured.append(_used())
    assert measured[-1][1] <= measured[5][1] and measured[-1][0] - measured[5][0] < 10, measured
    assert not psutil.Process().children()


def test_many_restarts(server: Server, run: Prefixes, working: Path, table: Table) -> None:
    """A run of which every start is interrupted after a second or less: as a night on a machine that is taken away often."""
    run.before("demos", working)
    restarts, done = 0, False
    for moment in random_moments("restarts", tries(100, 150)):
        running = server.start(working, run.argv)
        if wait_for_line(running, "stages"):
            time.sleep(moment.uniform(0.1, 1.2))
            running.signal(moment.choice((signal.SIGKILL, signal.SIGTERM)), running.pid)
        outcome = running.wait()
        assert "Traceback" not in outcome.said, outcome.said[-2000:]
        restarts += 1
        done = done or outcome.status == 0
        if done and restarts >= 100:
            break
    final = server.run(working, run.argv)
    wrong = ([] if final.status == 0 else [final.said[-2000:]]) + run.different(working, "report") + left_over(working)
    for _ in range(restarts):
        table.add("restarts, one after the other", "a whole run", wrong, "")
    assert not wrong, wrong
