"""The stage `demos`: the training demonstrations, recorded in the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.config import DemosConfig
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.worlds.contract import World
from envs.demonstrations import Demonstrations


@dataclass(frozen=True)
class RecordDemonstrations(Stage[Demonstrations]):
    """Demonstrations of the world's expert from every training start."""

    world: World
    config: DemosConfig
    name = "demos"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.world.origin, **self.world.camera_key, "demos": asdict(self.config)}

    def run(self, context: Context, folder: Path) -> None:
        self.world.record_demonstrations(context, folder)

    def load(self, folder: Path) -> Demonstrations:
        return Demonstrations.load(folder, self.world.spec)
