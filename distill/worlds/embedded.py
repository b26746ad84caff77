"""Demonstrations and starts of the embedded tasks: what the expert shows, where policies begin, what they are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

import envs
from distill.hypotheses.cache import episode_seed
from distill.store.manifest import write_json
from envs.demonstrations import Demonstration, Demonstrations, windows
from envs.panda.recording import record, stored_starts

if TYPE_CHECKING:
    from distill.stages.pipeline import Pipeline

TRIES = 5
"""So often the expert, which shakes its hand, may fail at a start before the run stops."""
HELD_OUT = 32
"""At most so many validation starts are demonstrated for the held-out observations."""


def record_demonstrations(pipeline: Pipeline, folder: Path) -> None:
    """Every training start, solved by the expert in every mode; or `demos.episodes` of these, the modes in turn."""
    config = pipeline.config
    starts = stored_starts(config.task, config.seed, "train", config.demos.train_starts)
    jobs = [
        (start, mode, repeat)
        for start in range(len(starts)) for mode in pipeline.spec.modes for repeat in range(config.demos.per_mode)
    ]  # fmt: skip
    if config.demos.episodes:
        # in random order within each mode, then one of each mode in turn
        mixed = [jobs[row] for row in np.random.default_rng([config.seed, 13]).permutation(len(jobs))]
        by_mode = [[job for job in mixed if job[1] == mode] for mode in pipeline.spec.modes]
        jobs = sorted([job for turn in zip(*by_mode, strict=True) for job in turn][: config.demos.episodes])
    _record(pipeline, folder, starts, jobs, "train", config.demos.noise_m)


def make_starts(pipeline: Pipeline, folder: Path) -> None:
    """Validation and test starts, and held-out observations along demonstrations from the validation starts."""
    config, evaluate = pipeline.config, pipeline.config.evaluate
    validation = stored_starts(config.task, config.seed, "validation", evaluate.validation_starts)
    test = stored_starts(config.task, config.seed, "test", evaluate.test_starts)
    chosen = np.random.default_rng([config.seed, 11])
    jobs = [(start, str(chosen.choice(pipeline.spec.modes)), 0) for start in range(min(len(validation), HELD_OUT))]
    _record(pipeline, folder / "held_out", validation, jobs, "validation", 0.0)
    if pipeline.run.is_main:
        held_out = Demonstrations.load(folder / "held_out", pipeline.spec)
        save_starts(pipeline, folder, held_out, validation, test, chosen)


def save_starts(
    pipeline: Pipeline, folder: Path, held_out: Demonstrations, validation: np.ndarray, test: np.ndarray,
    generator: np.random.Generator,
) -> None:  # fmt: skip
    """Write starts.safetensors: the starts, and the observations to measure fidelity at, drawn from the held-out ones."""
    frames = generator.permutation(held_out.num_frames)[: pipeline.config.evaluate.fidelity_observations]
    states, _ = windows(held_out, frames, pipeline.config.teacher.observation_steps, 1)
    stored = {"validation": torch.from_numpy(validation), "test": torch.from_numpy(test),
              "observations": torch.from_numpy(np.ascontiguousarray(states))}  # fmt: skip
    if pipeline.cameras is not None:  # what they saw stays where it is, packed; here is only where to look
        stored["frames"] = torch.from_numpy(frames)
    save_file(stored, str(folder / "starts.safetensors"))


def _record(
    pipeline: Pipeline, folder: Path, starts: np.ndarray, jobs: list[tuple[int, str, int]], split: str, noise_m: float
) -> None:
    """Record the jobs (start, mode, repeat) over all processes; the order does not depend on how many there are."""
    config, run = pipeline.config, pipeline.run
    env = envs.make(config.task, pipeline.cameras)
    mine: list[tuple[int, int, Demonstration]] = []
    failed = 0
    numbered = run.my_share(list(enumerate(jobs)))
    for number, (start, mode, _) in pipeline.bar(numbered, f"demos ({split})", "episode"):
        for attempt in range(TRIES):
            seed = episode_seed(config.seed, split, number, attempt)
            episode = record(env, starts[start], mode, seed, noise_m)
            if episode is not None:
                mine.append((number, start, episode))
                break
            failed += 1
        else:
            raise RuntimeError(f"the expert failed {TRIES} times at start {starts[start].tolist()}, mode {mode}")
    env.close()
    recorded = sorted(run.gather(mine), key=lambda item: item[0])
    failures = sum(run.gather([failed]))
    if run.is_main:
        Demonstrations.from_episodes(
            pipeline.spec, [episode for _, _, episode in recorded], [start for _, start, _ in recorded]
        ).save(folder)
        write_json(folder / "recording.json", {"episodes": len(recorded), "expert_failures_repeated": failures})
