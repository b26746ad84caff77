"""What every stage gets while it runs: the run's folder, the processes, the log, progress bars."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor

from distill.runtime.bar import Bar
from distill.runtime.diagnostics import note_line, note_place
from distill.store.manifest import make_folder
from distill.training.loop import Share
from envs.recorded.sources import refuse_endless

T = TypeVar("T")


MEETING = "FLOW2ONE_MEETING"
"""Environment variable: the file over which the processes of one machine meet, instead of an open port."""


def _meeting() -> str | None:
    """Where torch's processes meet; None: as their launcher says."""
    file = os.environ.get(MEETING)
    if file is None:
        return None
    # without an accelerator, accelerate names rank and world size itself
    own = f"?rank={os.environ['RANK']}&world_size={os.environ['WORLD_SIZE']}" if torch.accelerator.is_available() else ""
    return f"file://{file}{own}"


METRICS = "metrics.jsonl"


@dataclass
class Context:
    """folder: of the run. accelerator: the processes. wandb: its run, None when off. lock: the open lock file of the run's
    folder.

    finished: folders of the stages that this process has seen done. memory: results that are read again.
    alone: this process works on its own: it counts as the first process and waits for no other.
    """

    folder: Path
    accelerator: Accelerator
    wandb: Any = None
    lock: Any = None
    finished: dict[str, Path] = field(default_factory=dict)
    memory: dict[tuple[str, str], Any] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def open(cls, folder: Path, wandb: str = "disabled") -> Context:
        """Join the other processes and lock the run's folder.

        Raises ValueError when another flow2one works in the same folder, or when wandb is wanted and not installed.
        """
        # the others may wait long for a stage that runs on the first process only (latency, report)
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # otherwise accelerate treats every CPU worker as the only process
            kwargs_handlers=[InitProcessGroupKwargs(init_method=_meeting(), timeout=timedelta(hours=6))],
        )
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != world:
            raise RuntimeError(f"the launcher started {world} processes, accelerate sees {accelerator.num_processes}")
        context = cls(folder, accelerator)
        note_place(folder=folder)
        try:
            context.on_main(lambda: context._open_on_main(wandb))
        except ValueError:
            context.close()
            raise
        return context

    def _open_on_main(self, wandb_mode: str) -> None:
        try:
            make_folder(self.folder)
            for name in (".lock", METRICS):
                refuse_endless(self.folder / name)
            self.lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be written ({error.strerror}); name another folder") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise ValueError(
                f"another flow2one is working in {self.folder}; wait for it or stop it, or name another folder (--name, with "
                "convert and compare --out)"
            ) from error
        if wandb_mode != "disabled":
            try:
                import wandb
            except ImportError as error:
                raise ValueError("wandb was asked for but is not installed; pip install wandb, or --wandb disabled") from error
            self.wandb = wandb.init(project="flow2one", name=self.folder.name, mode=wandb_mode, dir=str(self.folder))

    # -- processes --------------------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        return self.alone or self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def share(self) -> Share:
        """This process's part of the work."""
        return Share() if self.alone else Share(self.accelerator.process_index, self.accelerator.num_processes)

    def by_itself(self) -> Context:
        """The same context for work that this process does on its own."""
        return replace(self, alone=True)

    def on_main(self, call: Callable[[], T]) -> T:
        """Call it on the first process only; its result or its ValueError reaches all processes."""
        message: list[Any] = [None, None]
        if self.is_main:
            try:
                message[0] = call()
            except ValueError as error:
                message[1] = str(error)
        if self.share.world > 1:
            broadcast_object_list(message)
        if message[1] is not None:
            raise ValueError(message[1])
        result: T = message[0]
        return result

    def my_share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on."""
        return items[self.share.rank :: self.share.world]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in process order, on every process."""
        return list(gather_object(items)) if self.share.world > 1 else items

    def wait(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            self.accelerator.wait_for_everyone()

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in batch.items()}

    # -- log and progress -------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a line, on the first process."""
        if self.is_main:
            note_line(text)
            print(text, flush=True)

    def log(self, stage: str, values: Mapping[str, float]) -> None:
        """Write one line to metrics.jsonl and, when on, to wandb. Call it on the first process or on one that works alone."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 2), "stage": stage, **values}) + "\n")
        self.log_remote(stage, values)

    def log_remote(self, stage: str, values: Mapping[str, float]) -> None:
        """Log to wandb only, when it is on."""
        if self.wandb is not None:
            self.wandb.log({f"{stage}/{name}": value for name, value in values.items()})

    def bar(self, items: Sequence[T], title: str, unit: str, total: int | None = None) -> Iterator[T]:
        """The items, with a progress bar on the first process. total: see `counter`."""
        with self.counter(len(items), title, unit, total) as bar:
            for item in items:
                yield item
                bar.update()

    def counter(self, mine: int, title: str, unit: str, total: int | None = None) -> Bar:
        """A progress bar that is advanced by hand, shown on the first process.

        mine: items of this process. total: items of all processes, which is what the bar counts; None: `mine` are all.
        """
        return Bar(mine, mine if total is None else total, title, unit, self.is_main)

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
        if self.lock is not None:
            self.lock.close()
        self.accelerator.end_training()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
