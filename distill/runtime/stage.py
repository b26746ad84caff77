"""The contract of a stage, and of everything a stage reads.

A stage is a frozen dataclass whose fields are what it reads and what of the config its result depends on. Its key is a hash of
both, so a stage is done again exactly when its result would differ, and an old result comes back with the old settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from distill.runtime.context import Context
from distill.store.manifest import make_key

T_co = TypeVar("T_co", covariant=True)


class Input(Protocol):
    """What a stage reads: another stage, a part of one, or something that was there before the run.

    key: changes exactly when its content does. needs: the stages that must be done before it can be read.
    """

    @property
    def key(self) -> str: ...

    @property
    def needs(self) -> tuple[Stage[Any], ...]: ...


class Stage(ABC, Generic[T_co]):
    """One folder of results, ``<run>/<name>``: what it is made from, how it is made, and how it is read back.

    Subclasses are frozen dataclasses. `run` is called by all processes together, unless `side_by_side` is set.
    """

    side_by_side: ClassVar[bool] = False
    """Whether `run` needs one process only, so that several such stages are done at a time, one on each process."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its folder below the run's, such as ``distill/chamfer``."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        """What it reads, by the names under which their keys stand in the manifest."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What else its result depends on, as JSON."""

    @abstractmethod
    def run(self, context: Context, folder: Path) -> None:
        """Make the result in `folder`, which holds what an interrupted attempt left there."""

    @abstractmethod
    def load(self, folder: Path) -> T_co:
        """The result, read back from the finished stage's folder."""

    @property
    def cheap(self) -> bool:
        """Whether it takes little time beside others that are done side by side with it."""
        return False

    def relay(self, context: Context) -> None:
        """On the first process, once done: log to wandb what another process logged while it did this stage."""

    @property
    def read(self) -> tuple[Input, ...]:
        """All inputs, in their order."""
        found: list[Input] = []
        for value in self.inputs.values():
            found += value if isinstance(value, tuple) else [value]
        return tuple(found)

    @cached_property
    def made_from(self) -> Mapping[str, Any]:
        """Settings and the inputs' keys: what the manifest holds and the key is a hash of."""
        keys = {name: [each.key for each in value] if isinstance(value, tuple) else value.key
                for name, value in self.inputs.items()}  # fmt: skip
        twice = keys.keys() & self.settings.keys()
        assert not twice, f"{self.name}: {sorted(twice)} name a setting and an input"
        return {**self.settings, **keys}

    @cached_property
    def key(self) -> str:
        return make_key({"stage": self.name, **self.made_from})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return (self,)

    def folder(self, context: Context) -> Path:
        return context.folder / self.name

    def result(self, context: Context) -> T_co:
        """`load` of the finished stage, fresh every time."""
        return self.load(self.folder(context))

    def remembered(self, context: Context) -> T_co:
        """The same, read once a process: for results that nobody changes."""
        place = (self.name, self.key)
        if place not in context.memory:
            context.memory[place] = self.result(context)
        found: T_co = context.memory[place]
        return found


class FolderStage(Stage[Path]):
    """A stage whose result is its files."""

    def load(self, folder: Path) -> Path:
        return folder
