"""A graph of stages: all stages in execution order, and the stages of each command-line word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.report.ending import ending
from distill.runtime.context import Context
from distill.runtime.execution import ensure, in_order
from distill.runtime.stage import Stage


@dataclass(frozen=True)
class Graph:
    """last: the report, which needs all others. named: the stages of each command-line word.

    extra: stages that no other stage reads; they run before the report. note: is printed first.
    """

    last: Stage[Path]
    named: Mapping[str, tuple[Stage[Any], ...]]
    extra: tuple[Stage[Any], ...] = field(default=(), kw_only=True)
    note: str = field(default="", kw_only=True)

    @property
    def stages(self) -> list[Stage[Any]]:
        """Every stage, each after its inputs."""
        return in_order([*self.extra, self.last])

    def run(self, context: Context, word: str = "") -> None:
        """Run the stages of a word ("": everything) and the missing stages that they need."""
        if self.note:
            context.say(self.note)
        ensure(context, self.named[word] if word else (*self.extra, self.last))

    def say_outcome(self, context: Context) -> None:
        """Print what the finished report says in a few lines, and where it is."""
        folder = self.last.folder(context)
        told = ending(json.loads((folder / "report.json").read_text())) if context.is_main else []
        context.say("\n".join([*told, f"report: {(folder / 'report.html').resolve()}"]))
