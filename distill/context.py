"""One run in progress: its config, its processes, its log, and the stages' doing-once."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from distill.config import Config
from distill.store.cost import counting, spent
from distill.store.manifest import commit, finished, make_key, partial_folder
from distill.training.loop import Share

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """name: its folder below the run's; made_from: everything its result depends on; its hash is the stage's key."""

    name: str
    made_from: Mapping[str, Any]

    @property
    def key(self) -> str:
        return make_key({"stage": self.name, **self.made_from})


@dataclass
class Run:
    """What every stage is given."""

    config: Config
    accelerator: Accelerator
    wandb: Any = None
    lock: Any = None

    @classmethod
    def open(cls, config: Config) -> Run:
        """Join the other processes and lock the run's folder.

        Raises ValueError when another flow2one works in the same folder, or when wandb was asked for and is missing.
        """
        # a stage that only the first process does (latency, report) may keep the others waiting
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # without it accelerate takes every worker on a CPU for the only one
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != world:
            raise RuntimeError(f"the launcher started {world} processes, accelerate sees {accelerator.num_processes}")
        run = cls(config, accelerator)
        try:
            run.on_main(run._open_on_main)
        except ValueError:
            run.close()
            raise
        return run

    def _open_on_main(self) -> None:
        self.config.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.config.folder / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise ValueError(
                f"another flow2one is working in {self.config.folder}; wait for it or end it, or use another --name"
            ) from error
        if self.config.wandb != "disabled":
            try:
                import wandb
            except ImportError as error:
                raise ValueError("wandb was asked for but is not installed; pip install wandb, or --wandb disabled") from error
            self.wandb = wandb.init(
                project="flow2one", name=self.config.folder.name, mode=self.config.wandb, dir=str(self.config.folder)
            )

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def share(self) -> Share:
        return Share(self.accelerator.process_index, self.accelerator.num_processes)

    def folder(self, stage: Stage) -> Path:
        return self.config.folder / stage.name

    def say(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)

    def on_main(self, call: Callable[[], T]) -> T:
        """Do it on the first process only; its result or its ValueError reaches all of them."""
        message: list[Any] = [None, None]
        if self.is_main:
            try:
                message[0] = call()
            except ValueError as error:
                message[1] = str(error)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(message)
        if message[1] is not None:
            raise ValueError(message[1])
        result: T = message[0]
        return result

    def my_share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.share.rank :: self.share.world]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of the processes, on every process."""
        return list(gather_object(items)) if self.accelerator.num_processes > 1 else items

    def log(self, stage: str, values: Mapping[str, float]) -> None:
        """One line in metrics.jsonl, and wandb if it was asked for; on the first process, or one that works alone."""
        with (self.config.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 2), "stage": stage, **values}) + "\n")
        if self.wandb is not None:
            self.wandb.log({f"{stage}/{name}": value for name, value in values.items()})

    def stage(self, stage: Stage, work: Callable[[Path], None]) -> Path:
        """Do a stage unless it is there; all processes call it together. Returns its folder.

        `work` gets the partial folder, which holds what an interrupted go left. Raises ValueError when the finished
        stage's files do not match their manifest.
        """
        folder = self.folder(stage)
        if self.is_done(stage):
            self.say(f"[{stage.name}] done before, reused: {folder}")
            return folder
        unfinished = partial_folder(folder, stage.key)
        if self.is_main:
            unfinished.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.say(f"[{stage.name}] ...")
        with counting(unfinished, leads=self.is_main):
            work(unfinished)
        self.accelerator.wait_for_everyone()
        self._commit(stage)
        return folder

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage is there and whole; all processes ask together."""
        return self.on_main(lambda: finished(self.folder(stage), stage.key))

    def stages_side_by_side(self, jobs: Sequence[tuple[Stage, Callable[[Path], None]]]) -> None:
        """Do stages that are not there yet, each on one process, several at a time.

        `work` must not wait for other processes. An interrupted stage goes on whichever process gets it.
        """
        folders = [partial_folder(self.folder(stage), stage.key) for stage, _ in jobs]
        if self.is_main:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.say(f"[{', '.join(stage.name for stage, _ in jobs)}] side by side ...")
        for number in self.my_share(range(len(jobs))):
            with counting(folders[number]):
                jobs[number][1](folders[number])
        self.accelerator.wait_for_everyone()
        for stage, _ in jobs:
            self._commit(stage)

    def _commit(self, stage: Stage) -> None:
        folder = self.folder(stage)

        def close_account() -> float:
            seconds, cpu_seconds = spent(partial_folder(folder, stage.key))
            commit(folder, stage.key, stage.made_from, seconds, cpu_seconds)
            return seconds

        self.say(f"[{stage.name}] done in {self.on_main(close_account):.1f} s: {folder}")

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
        if self.lock is not None:
            self.lock.close()
        self.accelerator.end_training()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
