"""Progress in lines: which stage of how many, the time so far, and what the rest will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from distill.runtime.earlier import earlier_seconds
from distill.runtime.stage import Stage
from distill.store.manifest import place_of


@dataclass
class Progress:
    """names: of all stages in order. estimates: seconds of those to run; None where no earlier run tells."""

    names: Sequence[str]
    estimates: dict[str, float | None]
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, run: Path, stages: Sequence[Stage[Any]]) -> Self:
        """Of these stages in this run's folder."""
        missing = [stage for stage in stages if place_of(run / stage.name, stage.key) is None]
        return cls([stage.name for stage in stages], {stage.name: earlier_seconds(run, stage) for stage in missing})

    @property
    def opening(self) -> str:
        """What is to be done, in a line."""
        done = len(self.names) - len(self.estimates)
        told = f"{len(self.names)} stages" + (f", {done} of them done already" if done else "")
        left = self.left
        return f"{told}; {left} to go" if left else told

    @property
    def left(self) -> str:
        """How long the stages that are to run will take; "" where nothing is known or nothing left."""
        return time_left(self.estimates)

    def place(self, *names: str) -> str:
        """The position of stages that run together, such as [4/20]."""
        numbers = sorted(1 + self.names.index(name) for name in names)
        return f"[{', '.join(map(str, numbers))}/{len(self.names)}]"

    def ended(self, name: str) -> str:
        """After a stage: the time since the start and what is left, in parentheses."""
        self.estimates.pop(name, None)
        told = f"{in_words(time.monotonic() - self.began)} so far"
        return f"({told}, {self.left} to go)" if self.left else f"({told})"


def time_left(estimates: Mapping[str, float | None]) -> str:
    """The sum in words; "at least" where some are not known; "" where none is."""
    known = [seconds for seconds in estimates.values() if seconds is not None]
    if not known:
        return ""
    return f"{'about' if len(known) == len(estimates) else 'at least'} {in_words(sum(known))}"


def in_words(seconds: float) -> str:
    """A duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{total // 60} min {total % 60} s" if total < 3600 else f"{total // 3600} h {total % 3600 // 60} min"
