"""A graph of stages: all of them in the order they are done, and which of them a word of the command line means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.runtime.context import Context
from distill.runtime.execution import ensure, in_order
from distill.runtime.stage import Stage


@dataclass(frozen=True)
class Graph:
    """last: the report, which needs all others; named: what is done for each word of the command line.

    further: stages that no other reads, done before the report.
    """

    last: Stage[Path]
    named: Mapping[str, tuple[Stage[Any], ...]]
    further: tuple[Stage[Any], ...] = field(default=(), kw_only=True)

    @property
    def stages(self) -> list[Stage[Any]]:
        """Every stage, each after what it reads."""
        return in_order([*self.further, self.last])

    def do(self, context: Context, word: str = "") -> None:
        """Do what a word means, "" for everything, and before it what is missing."""
        ensure(context, self.named[word] if word else (*self.further, self.last))
