"""The stage `evaluate/oracle`: the test starts' own demonstrations, replayed; an upper bound for all policies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.starts import RecordStarts


@dataclass(frozen=True)
class ReplayDemonstrations(Stage[dict[str, Any]]):
    """Only for a world with an oracle (`World.has_oracle`)."""

    starts: RecordStarts
    name = "evaluate/oracle"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"starts": self.starts}

    @property
    def settings(self) -> Mapping[str, Any]:
        return dict(self.starts.world.rollout_settings)

    def run(self, context: Context, folder: Path) -> None:
        self.starts.world.replay_demonstrations(context, self.starts.folder(context), folder)

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found
