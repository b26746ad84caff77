"""The contract of a stage, and of everything a stage reads.

A stage is a frozen dataclass whose fields are its inputs and the settings that its result depends on. Its key is a hash of
both, so a stage runs again exactly when its result would differ, and an old result is reused with the old settings.
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
    """What a stage reads: another stage, a part of one, or something that existed before the run.

    key: changes exactly when its content does. needs: the stages that must be done before it can be read.
    """

    @property
    def key(self) -> str: ...

    @property
    def needs(self) -> tuple[Stage[Any], ...]: ...


class Stage(ABC, Generic[T_co]):
    """One folder of results, ``<run>/<name>``: what it depends on, how it is computed, and how it is read back.

    Subclasses are frozen dataclasses. All processes call `run` together, unless `side_by_side` is set.
    """

    side_by_side: ClassVar[bool] = False
    """Whether `run` uses one process only, so that several such stages run in parallel, one per process."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its folder below the run's, such as ``distill/chamfer``."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        """What it reads, by the names of their keys in the manifest."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What else its result depends on, as JSON."""

    @abstractmethod
    def run(self, context: Context, folder: Path) -> None:
        """Write the result to `folder`, which keeps the files of an interrupted attempt."""

    @abstractmethod
    def load(self, folder: Path) -> T_co:
        """The result, read from the finished stage's folder."""

    @property
    def cheap(self) -> bool:
        """Whether it takes little time compared with stages that run in parallel with it."""
        return False

    def relay(self, context: Context) -> None:
        """On the first process, once done: log to wandb what another process logged during this stage."""

    @property
    def read(self) -> tuple[Input, ...]:
        """All inputs, in order."""
        found: list[Input] = []
        for value in self.inputs.values():
            found += value if isinstance(value, tuple) else [value]
        return tuple(found)

    @cached_property
    def made_from(self) -> Mapping[str, Any]:
        """Settings and the inputs' keys: stored in the manifest, and hashed to the key."""
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
        """`load` of the finished stage, read anew at every call."""
        return self.load(self.folder(context))

    def cached_result(self, context: Context) -> T_co:
        """The same, read once per process; callers must not change it."""
        place = (self.name, self.key)
        if place not in context.memory:
            context.memory[place] = self.result(context)
        found: T_co = context.memory[place]
        return found


class FolderStage(Stage[Path]):
    """A stage whose result is its folder."""

    def load(self, folder: Path) -> Path:
        return folder
