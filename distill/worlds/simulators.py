"""Several RLBench simulators at once, each in a process of its own, that stay from stage to stage."""

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
    """The simulators of this process, which stay from stage to stage while they are asked for with the same cameras."""

    def __init__(self, config: Config, cameras: CameraSettings | None) -> None:
        """cameras: those that most stages see with."""
        self._config, self._cameras = config, cameras
        self._made: list[RLBenchEnv] = []
        self.most = config.rlbench.workers

    def take(self, cameras: CameraSettings | None, count: int) -> list[RLBenchEnv]:
        """So many environments, each with a process of its own, that look only when they are asked to."""
        if cameras != self._cameras:
            self.close()
            self._cameras = cameras
        while len(self._made) < count:
            self._made.append(envs.make_rlbench(self._config.task, self._config.rlbench, cameras))
            self._made[-1].cameras_on_demand = True
        return self._made[:count]

    def close(self) -> None:
        """End them all; the next `take` starts others."""
        for env in self._made:
            env.close()
        self._made = []


def side_by_side(
    simulators: Simulators, cameras: CameraSettings | None, items: Sequence[int], work: Callable[[RLBenchEnv, int], T],
    keep: Callable[[int, T], None],
) -> None:  # fmt: skip
    """`work` on every item, as many at a time as there are simulators; `keep` gets what it gave, one at a time.

    The first exception ends all of it, Ctrl-C too; what was not finished then is not kept.
    """
    count = min(simulators.most, len(items))
    if not count:
        return
    stopped, keeping, free = threading.Event(), threading.Lock(), SimpleQueue[RLBenchEnv]()
    made = simulators.take(cameras, count)
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
