"""Several simulators in parallel, each in its own process, reused across stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from envs.cameras.specs import CameraSettings
from envs.contract import TaskEnv


class ProcessEnv(TaskEnv, Protocol):
    """An environment whose simulator runs in a process of its own; see `GymEnv` and `RLBenchEnv`.

    video_frames: None, or a list to which a frame is appended as the episode goes on.
    """

    video_frames: list[np.ndarray] | None

    @property
    def last_start(self) -> Any:
        """The start `[D]`, as a list."""
        ...

    def interrupt(self) -> None:
        """From another thread: ends the process at once."""
        ...

    def close(self) -> None:
        """Ends the process; the next reset starts another."""
        ...


T = TypeVar("T")
E = TypeVar("E", bound=ProcessEnv)


class Simulators(Generic[E]):
    """The simulators of this process, reused while the same cameras are requested."""

    def __init__(self, make: Callable[[CameraSettings | None], E], most: int, cameras: CameraSettings | None) -> None:
        """make: an environment with these cameras. most: number of simulators. cameras: those that most stages use."""
        self._make, self._cameras, self.most = make, cameras, most
        self._made: list[E] = []

    def acquire(self, cameras: CameraSettings | None, count: int) -> list[E]:
        """`count` environments, each with its own process, that render only on demand."""
        if cameras != self._cameras:
            self.close()
            self._cameras = cameras
        while len(self._made) < count:
            self._made.append(self._make(cameras))
            self._made[-1].cameras_on_demand = True
        return self._made[:count]

    def close(self) -> None:
        """Stop all simulators; the next `acquire` starts new ones."""
        for env in self._made:
            env.close()
        self._made = []


def side_by_side(
    simulators: Simulators[E], cameras: CameraSettings | None, items: Sequence[int], work: Callable[[E, int], T],
    keep: Callable[[int, T], None],
) -> None:  # fmt: skip
    """Call `work` on every item, as many at a time as there are simulators; `keep` gets each result, one at a time.

    The first exception stops everything, Ctrl-C included; unfinished items are dropped.
    """
    count = min(simulators.most, len(items))
    if not count:
        return
    stopped, keeping, free = threading.Event(), threading.Lock(), SimpleQueue[E]()
    made = simulators.acquire(cameras, count)
    for env in made:
        free.put(env)

    def one(item: int) -> None:
        env = free.get()
        try:
            result = work(env, item)
            with keeping:
                if not stopped.is_set():
                    keep(item, result)
        finally:
            free.put(env)

    threads = ThreadPoolExecutor(count)
    try:
        for future in as_completed([threads.submit(one, item) for item in items]):
            future.result()
    except BaseException:
        stopped.set()
        threads.shutdown(wait=False, cancel_futures=True)
        for env in made:
            env.interrupt()
        raise
    finally:
        threads.shutdown()
        if stopped.is_set():
            simulators.close()
