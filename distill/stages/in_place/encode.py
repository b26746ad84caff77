"""The stage `encode`: the policy's own `encode` at every observation of the hypotheses, once, in shards on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.hypotheses.cache import HypothesisDataset
from distill.inputs.recorded import Opened
from distill.runtime.bar import Bar
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input
from distill.stages.in_place.source import TrainingObservations
from teachers.adapters.conditions import shard_path
from teachers.adapters.teacher import AdapterTeacher

SPARE = 1 << 30
"""Bytes of the disk that encoded observations leave free."""


@dataclass(frozen=True)
class ConditionCost:
    """What encoding costs: bytes of one condition, seconds to compute it; observations: how many there are."""

    bytes: int
    seconds: float
    observations: int

    @classmethod
    def measured(cls, teacher: AdapterTeacher, observation: Mapping[str, torch.Tensor], observations: int) -> ConditionCost:
        """Of a policy, at one observation `[1, ..]`, the second time."""
        told, _ = teacher.request("condition", teacher.arrays(dict(observation)))
        return cls(int(told["bytes"]), float(told["seconds"]), observations)

    @property
    def total(self) -> int:
        return self.bytes * self.observations

    def fits(self, limit_gb: float, folder: Path) -> bool:
        """Whether all conditions fit into the limit [GiB] and on the disk of `folder`, which need not exist yet."""
        place = folder.resolve()
        while not place.is_dir():
            place = place.parent
        return self.total <= min(limit_gb * (1 << 30), shutil.disk_usage(place).free - SPARE)

    def line(self, stored: bool, steps: int, batch_size: int) -> str:
        """What will be done and what it costs, in words."""
        size = f"{in_units(self.bytes)} an observation, {in_units(self.total)} for all {self.observations}"
        if stored:
            return f"encoded observations: {size}; computed once, in {self._duration(1)}, and kept in encode/"
        return (f"encoded observations: {size}; too much to keep (--in-place.conditions-gb): computed again in every step, in "
                f"all {self._duration(batch_size * steps / self.observations)}")  # fmt: skip

    def _duration(self, times: float) -> str:
        return f"about {max(1, round(self.seconds * self.observations * times))} s"


def in_units(size: int) -> str:
    """Bytes as B, KB, MB or GB, of which each has 1024 of the one before."""
    value, units = float(size), ["B", "KB", "MB", "GB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


@dataclass(frozen=True)
class EncodeObservations(FolderStage):
    """opened: the policy, behind an adapter; source: the observations."""

    opened: Opened
    source: TrainingObservations
    name = "encode"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"policy": self.opened, "observations": self.source}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def shard_size(self) -> int:
        """Observations of a file, which are encoded together."""
        return self.source.hypotheses.config.batch_size

    def run(self, context: Context, folder: Path) -> None:
        assert isinstance(self.opened.policy, AdapterTeacher)
        teacher, cache = self.opened.policy, self.source.cache(context)
        observe = self.source.observe(context, self.opened.shape)
        every = range(-(-len(cache) // self.shard_size))
        shards = context.my_share(every)
        with Bar(len(shards), len(every), "encode", "shard", shown=context.is_main) as bar:
            for shard in shards:
                path = shard_path(folder, shard)
                if not path.is_file():
                    seen = observe(self._frames(cache, shard))
                    arrays = teacher.arrays({name: torch.from_numpy(value) for name, value in seen.items()})
                    teacher.request("encode", arrays, path=str(path.resolve()))
                bar.update()
        context.wait()

    def _frames(self, cache: HypothesisDataset, shard: int) -> Any:
        first = shard * self.shard_size
        return cache.batch(range(first, min(first + self.shard_size, len(cache))))["frame_index"].numpy()
