"""Several RLBench simulators in parallel, each in its own process, reused across stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import TypeVar

import envs
from distill.config import Config
from envs.cameras.specs import CameraSettings
from envs.rlbench.env import RLBenchEnv

T = TypeVar("T")


class Simulators:
    """The simulators of this process, reused while the same cameras are requested."""

    def __init__(self, config: Config, cameras: CameraSettings | None) -> None:
        """cameras: those that most stages use."""
        self._config, self._cameras = config, cameras
        self._made: list[RLBenchEnv] = []
        self.most = config.rlbench.workers

    def acquire(self, cameras: CameraSettings | None, count: int) -> list[RLBenchEnv]:
        """`count` environments, each with its own process, that render only on demand."""
        if cameras != self._cameras:
            self.close()
            self._cameras = cameras
        while len(self._made) < count:
            self._made.append(envs.make_rlbench(self._config.task, self._config.rlbench, cameras))
            self._made[-1].cameras_on_demand = True
        return self._made[:count]

    def close(self) -> None:
        """Stop all simulators; the next `acquire` starts new ones."""
        for env in self._made:
            env.close()
        self._made = []


def side_by_side(
    simulators: Simulators, cameras: CameraSettings | None, items: Sequence[int], work: Callable[[RLBenchEnv, int], T],
    keep: Callable[[int, T], None],
) -> None:  # fmt: skip
    """Call `work` on every item, as many at a time as there are simulators; `keep` gets each result, one at a time.

    The first exception stops everything, Ctrl-C included; unfinished items are dropped.
    """
    count = min(simulators.most, len(items))
    if not count:
        return
    stopped, keeping, free = threading.Event(), threading.Lock(), SimpleQueue[RLBenchEnv]()
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
