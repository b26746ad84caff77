"""What a stage has cost: over goes that ended well, by an exception, or by a signal that nothing can be done about."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.store.cost import accounting, cost_of

ROOT = Path(__file__).resolve().parents[3]
KILLED = """
import sys, time
from pathlib import Path
from distill.store.cost import accounting
with accounting(Path(sys.argv[1]), every_s=0.02):
    print("begun", flush=True)
    while True:
        pass
"""


def _burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_nothing_was_spent_before_anything_was_done(tmp_path: Path) -> None:
    assert cost_of(tmp_path) == (0, 0)


def test_goes_add_up_however_they_end_and_only_one_process_counts_on_the_clock(tmp_path: Path) -> None:
    with accounting(tmp_path):
        _burn(0.1)
    with pytest.raises(RuntimeError, match="boom"), accounting(tmp_path):
        _burn(0.1)
        raise RuntimeError("boom")
    seconds, cpu_seconds = cost_of(tmp_path)
    with accounting(tmp_path, leads=False):
        _burn(0.1)
    assert cost_of(tmp_path)[0] == seconds >= 0.2
    assert cost_of(tmp_path)[1] >= cpu_seconds + 0.1 >= 0.3  # of every process its processor time


def test_a_go_that_is_killed_has_written_down_what_it_spent(tmp_path: Path) -> None:
    go = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    assert go.stdout is not None and go.stdout.readline() == b"begun\n"
    until = time.monotonic() + 30
    while cost_of(tmp_path)[1] < 0.2 and time.monotonic() < until:
        time.sleep(0.02)
    go.send_signal(signal.SIGKILL)
    assert go.wait() == -signal.SIGKILL
    go.stdout.close()
    assert cost_of(tmp_path)[1] >= 0.2
