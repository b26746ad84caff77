"""What worlds share whose simulators run in processes of their own: demonstrations and episodes stored one by one, resumed."""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np

from distill.evaluation.rollouts import Episode
from distill.runtime.context import Context
from distill.store.manifest import remove, write_folder, write_json
from distill.worlds.contract import World
from distill.worlds.episode_files import read_episodes
from distill.worlds.simulators import E, Simulators, side_by_side
from envs.cameras.frames import CameraFrames
from envs.cameras.specs import CameraSettings, CamerasSpec
from envs.demonstrations import Demonstration, Demonstrations

DEMONSTRATIONS = "demos"
"""The folder of the training demonstrations in a run's folder."""


class PooledWorld(World, Generic[E]):
    """A world with several simulators at once. An episode that a stopped run has finished is not repeated."""

    simulators: Simulators[E]

    @abstractmethod
    def versions_of(self, env: E) -> dict[str, str]:
        """The versions of what simulates, for the report."""

    def unify(self, frames: CameraFrames, spec: CamerasSpec) -> CameraFrames:
        """Camera frames whose spec may differ by what the simulator's inexactness explains, under one spec."""
        return frames

    def record_each(
        self, context: Context, folder: Path, start_index: Sequence[int], title: str,
        work: Callable[[E, int], tuple[Demonstration, list[str]]],
    ) -> None:  # fmt: skip
        """Record demonstration number 0, 1, .. into `folder`; start_index: of the start that each begins at.

        work: gives the demonstration, and the names of the failures on the way to it. Each is stored as it ends, with these
        failures, so that a stopped run resumes and counts them, too.
        """
        stored, count = folder / "episodes", len(start_index)
        mine = [number for number in context.my_share(range(count)) if not (stored / f"{number}" / "info.json").is_file()]
        versions: dict[str, str] = {}
        with context.counter(len(mine), f"demos ({title})", "episode") as bar:

            def one(env: E, number: int) -> tuple[Demonstration, list[str]]:
                recorded = work(env, number)
                versions.update(versions or self.versions_of(env))
                return recorded

            def keep(number: int, recorded: tuple[Demonstration, list[str]]) -> None:
                def write(target: Path) -> None:
                    Demonstrations.from_episodes(self.spec, [recorded[0]], [number]).save(target)
                    write_json(target / "recording.json", {"failures": recorded[1], "simulator": versions})

                write_folder(stored / f"{number}", write)
                bar.update()

            stored.mkdir(parents=True, exist_ok=True)
            side_by_side(self.simulators, self.cameras, mine, one, keep)
        context.wait()
        if context.is_main:
            episodes = [stored / f"{number}" for number in range(count)]
            joined = self._join([Demonstrations.load(episode, self.spec) for episode in episodes], start_index)
            joined.save(folder)
            recordings = [json.loads((episode / "recording.json").read_text()) for episode in episodes]
            failed = [name for recording in recordings for name in recording["failures"]]
            write_json(folder / "recording.json", {
                "episodes": len(episodes), "longest": int(np.bincount(joined.episode_index).max()),
                "expert_failures_repeated": len(failed), "failures": failed, "simulator": recordings[0]["simulator"],
            })  # fmt: skip
            remove(stored)
        context.wait()

    def _join(self, parts: Sequence[Demonstrations], start_index: Sequence[int]) -> Demonstrations:
        """All demonstrations in one. Raises ValueError when their cameras differ."""
        episodes: list[Demonstration] = []
        for part in parts:
            if part.cameras is not None and parts[0].cameras is not None:
                part = replace(part, cameras=self.unify(part.cameras, parts[0].cameras.spec))
            assert part.num_episodes == 1
            mode = part.spec.modes[int(part.episode_mode[0])]
            episodes.append(Demonstration(part.state, part.action, part.tool, part.episode_start[0], mode, part.cameras))
        return Demonstrations.from_episodes(parts[0].spec, episodes, start_index)

    def run_each(
        self, context: Context, cameras: CameraSettings | None, count: int, folder: Path, name: str, title: str,
        work: Callable[[E, int], Episode],
    ) -> list[Episode]:  # fmt: skip
        """Episodes 0 .. count-1 by `work`, over all processes; the same list on each.

        Each is appended to ``<name>-<process>.jsonl`` as it ends, and is not repeated.
        """
        mine, done = context.my_share(range(count)), read_episodes(folder, name)
        with (
            context.counter(len(mine), f"{title} ({name})", "episode", count) as bar,
            (folder / f"{name}-{context.share.rank}.jsonl").open("a") as lines,
        ):

            def one(env: E, index: int) -> dict[str, Any]:
                began = time.monotonic()
                episode = work(env, index)
                return {"start": env.last_start, "seconds": round(time.monotonic() - began, 3), "episode": asdict(episode)}

            def keep(index: int, row: dict[str, Any]) -> None:
                done[index] = Episode(**row["episode"])
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
                bar.update()

            bar.update(sum(index in done for index in mine))
            side_by_side(self.simulators, cameras, [index for index in mine if index not in done], one, keep)
        gathered = context.gather([done[index] for index in mine])
        return sorted(gathered, key=lambda episode: episode.index)

    def close(self) -> None:
        self.simulators.close()
