"""A worker process: it answers, its failures have names, and it is killed and started again whatever it does."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.process.supervised import SERVING
from envs.process.worker import Worker, WorkerFailure, WorkerInterrupted, WorkerSettings, WorkerStartError

PROGRAM = Path(__file__).parent / "faulty_program.py"
FOREIGN = ("process/wire", "process/serving", "rlbench/plain_pickle", "rlbench/tree", "rlbench/protocol",
           "rlbench/program", "rlbench/replay")  # fmt: skip
"""Files that run in an interpreter of somebody else's choice."""

Make = Callable[..., Worker]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Worker] = []

    def new(step_s: float = 20.0, start_s: float = 20.0, grace_s: float = 0.3, **options: Any) -> Worker:
        settings = WorkerSettings(start_s=start_s, step_s=step_s, grace_s=grace_s)
        made.append(Worker(PROGRAM, options, settings))
        return made[-1]

    yield new
    for worker in made:
        worker.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def gone(pid: int, within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_it_starts_with_the_first_question_and_stays(make: Make) -> None:
    worker = make()
    assert worker.pid is None and worker.starts == 0
    answer, arrays = worker.request({"command": "x"}, {"a": np.arange(3.0)})
    assert answer["answers"] == 1 and str(SERVING.parent) not in answer["path"]
    np.testing.assert_array_equal(arrays["a"], [0, 2, 4])
    assert worker.request({"command": "x"})[0]["answers"] == 2 and worker.starts == 1


def test_what_a_simulator_prints_disturbs_nobody(make: Make) -> None:
    worker = make()
    for answers in range(1, 4):
        assert worker.request({"command": "chatter"}, {"a": np.ones(2)})[0]["answers"] == answers


def test_a_process_that_dies_is_a_crash_and_the_next_question_starts_another(make: Make) -> None:
    worker = make()
    with pytest.raises(WorkerFailure, match=r"crash: the process ended with status -9; it printed last: [\s\S]*about to die"):
        worker.request({"command": "die"})
    assert worker.request({"command": "x"})[0]["answers"] == 1 and worker.starts == 2


def test_one_that_is_killed_from_outside_while_it_works_is_a_crash(make: Make) -> None:
    worker = make()
    worker.start()
    pid = worker.pid
    assert pid is not None
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    begin = time.monotonic()
    with pytest.raises(WorkerFailure) as caught:
        worker.request({"command": "hang"})
    assert caught.value.name == "crash" and time.monotonic() - begin < 5


def test_an_interrupted_one_has_not_failed_and_is_not_started_again(make: Make) -> None:
    worker = make()
    worker.start()
    threading.Timer(0.2, worker.interrupt).start()
    begin = time.monotonic()
    with pytest.raises(WorkerInterrupted, match="make another one"):
        worker.request({"command": "hang"})
    assert time.monotonic() - begin < 5 and worker.pid is None
    for _ in range(2):
        with pytest.raises(WorkerInterrupted):
            worker.request({"command": "x"})
    assert worker.starts == 1


def test_one_that_is_interrupted_while_it_starts_ends_all_the_same(make: Make) -> None:
    worker = make()
    begin = worker._open

    def interrupted() -> None:
        worker._interrupted = True  # the process is not there yet, so that nothing could be killed
        begin()

    worker._open = interrupted  # type: ignore[method-assign]
    with pytest.raises(WorkerInterrupted):
        worker.request({"command": "x"})
    assert worker.pid is None and worker.starts == 1


def test_one_that_hangs_and_swallows_the_signal_is_killed_all_the_same(make: Make) -> None:
    worker = make(step_s=0.3, deaf=True)
    worker.start()
    pid = worker.pid
    assert pid is not None
    with pytest.raises(WorkerFailure, match=r"hang: no answer within 0.3 s") as caught:
        worker.request({"command": "hang"})
    assert caught.value.name == "hang" and not alive(pid)
    assert worker.request({"command": "x"}, limit_s=20)[0]["answers"] == 1


def test_what_it_started_dies_with_it(make: Make) -> None:
    worker = make()
    child = worker.request({"command": "child"})[0]["child"]
    assert alive(child)
    worker.close()
    assert gone(child)


def test_failures_have_the_programs_names_and_cost_only_the_question(make: Make) -> None:
    worker = make()
    with pytest.raises(WorkerFailure, match="odd_error: OddError: two lines") as caught:
        worker.request({"command": "odd"})
    assert (caught.value.name, caught.value.text) == ("odd_error", "OddError: two lines")
    with pytest.raises(WorkerFailure, match="error: KeyError: 'x'"):
        worker.request({"command": "plain"})
    assert worker.request({"command": "x"})[0]["answers"] == 3 and worker.starts == 1


def test_an_answer_that_cannot_be_sent_is_a_failure_and_costs_only_the_request(make: Make) -> None:
    worker = make()
    with pytest.raises(WorkerFailure, match="error: ValueError: .*not JSON compliant"):
        worker.request({"command": "unsendable"})
    assert worker.request({"command": "x"})[0]["answers"] == 2 and worker.starts == 1


def test_one_that_failed_without_a_name_is_not_kept_longer_than_it_must(make: Make) -> None:
    worker = make()
    for do, starts in (("odd", 1), ("plain", 2), ("x", 2)):
        with contextlib.suppress(WorkerFailure):
            worker.request({"command": do})
        worker.discard_unhealthy()
        worker.start()
        assert worker.starts == starts


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"broken": True}, {}, "faulty_program.py in .*python.* did not start: error: ImportError: No module named 'rlbench'"),
        ({"sleep_at_start": True}, {"start_s": 0.5}, "did not start: hang: no answer within 0.5 s"),
    ],
)
def test_one_that_does_not_start_says_why(
    make: Make, options: dict[str, Any], settings: dict[str, float], message: str
) -> None:
    worker = make(**options, **settings)
    with pytest.raises(WorkerStartError, match=message):
        worker.request({"command": "x"})
    assert worker.pid is None


@pytest.mark.parametrize(("deadly", "started"), [(0, 1), (2, 3), (3, 0)])
def test_one_that_dies_while_it_starts_is_started_again(make: Make, tmp_path: Path, deadly: int, started: int) -> None:
    worker = make(die_until=[str(tmp_path / "starts"), deadly])
    if started:
        assert worker.request({"command": "x"})[0]["answers"] == 1 and worker.starts == started
    else:
        with pytest.raises(WorkerStartError, match="did not start: crash: the process ended with status -9"):
            worker.start()
        assert worker.pid is None
    assert len((tmp_path / "starts").read_text().splitlines()) == (started or 3)


def test_an_interpreter_that_is_not_there_is_named() -> None:
    worker = Worker(PROGRAM, {}, WorkerSettings(python="/nowhere/python -X dev"))
    with pytest.raises(WorkerStartError, match="/nowhere/python can not be started"):
        worker.start()


def test_an_interpreter_may_be_a_command_line() -> None:
    with Worker(PROGRAM, {}, WorkerSettings(python=f"env A=b {sys.executable}")) as worker:
        assert worker.request({"command": "x"})[0]["answers"] == 1


def test_workers_work_side_by_side(make: Make) -> None:
    workers = [make() for _ in range(2)]
    pids = set()
    for worker in workers:
        worker.start()
        pids.add(worker.pid)
    with pytest.raises(WorkerFailure):
        workers[0].request({"command": "die"})
    assert len(pids) == 2 and workers[1].request({"command": "x"})[0]["answers"] == 1 and workers[1].starts == 1


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from envs.process.worker import Worker, WorkerSettings; "
        f"worker = Worker(Path({str(PROGRAM)!r}), {{}}, WorkerSettings()); worker.start(); print(worker.pid, flush=True); "
        "worker.request({'command': 'hang'})"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=SERVING.parents[1], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.kill()
    assert gone(pid)


@pytest.mark.parametrize("change", [{"start_s": 0}, {"step_s": -1}, {"grace_s": -0.1}])
def test_times_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="start_s and step_s must be above 0"):
        WorkerSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_runs_elsewhere_is_old_pythons_and_imports_nothing_of_ours(name: str) -> None:
    tree = ast.parse((SERVING.parents[1] / f"{name}.py").read_text(), feature_version=(3, 8))
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {
        str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0
    }
    assert imported <= {*sys.stdlib_module_names, "numpy", "PIL", "rlbench", "pyrep"}


def test_one_that_died_between_two_questions_can_be_renewed(make: Make) -> None:
    worker = make()
    worker.discard_unhealthy()
    worker.request({"command": "x"})
    worker.discard_unhealthy()
    assert worker.pid is not None and worker.starts == 1
    os.kill(worker.pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while worker.pid is not None and time.monotonic() < end:  # its threads end one after the other
        worker.discard_unhealthy()
    assert worker.pid is None and worker.request({"command": "x"})[0]["answers"] == 1 and worker.starts == 2
