"""Which representation generalises to new scenes? One teacher per variant, trained alike, measured on training and new scenes.

    python benchmarks/new_scenes.py --run runs/rlbench-reach_target-seed0 --config configs/rlbench/reach_target.yaml
        configs/rlbench/small.yaml [--variants base tool ..] [--steps 3000] [--demonstrations 100]

Takes the demonstrations and the held-out demonstrations of a finished run with point clouds, and trains a flow teacher per
variant with the sizes of its config. Prints the error of the last planned pose (distill/evaluation/pose_error.py), and adds it
to benchmarks/results/new_scenes.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import Config
from distill.evaluation.pose_error import first_and_other_frames, pose_errors, summarise_errors
from distill.observation import observation_of
from distill.presets import apply_preset, find_preset
from distill.store.machine import hardware
from distill.training.data import Batch, batches_of, moved, normaliser_of, windows_for
from distill.training.loop import Share, fit
from distill.worlds import open_world
from distill.worlds.starts import HELD_OUT_FOLDER
from envs.demonstrations import Demonstrations
from envs.poses import pose_layout
from teachers.flow import FlowTeacher
from teachers.networks.shapes import PolicyShape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/new_scenes.json"
PLAIN = {"frame": "base", "keypoints": 0, "translate_m": 0.0, "rotate_deg": 0.0, "stretch": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, translated": {"translate_m": 0.2},
    "base, translated, keypoints": {"translate_m": 0.2, "keypoints": 16},
    "tool": {"frame": "tool"},
    "tool, translated": {"frame": "tool", "translate_m": 0.2},
    "tool, keypoints": {"frame": "tool", "keypoints": 16},
    "tool, stretched": {"frame": "tool", "stretch": 0.3},
    "tool, stretched, keypoints": {"frame": "tool", "stretch": 0.3, "keypoints": 16},
    "tool, stretched, rotated, keypoints": {"frame": "tool", "stretch": 0.3, "rotate_deg": 20.0, "keypoints": 16},
}
SAMPLES, SOLVER_STEPS, FRAMES = 16, 10, 128


def train(config: Config, shape: PolicyShape, shown: Demonstrations, frames: np.ndarray) -> FlowTeacher:
    """The averaged weights of a teacher after `config.teacher.training_steps`; frames: those that it may see."""
    motions, settings = config.observation.motions, replace(config.teacher, candidates=1)
    torch.manual_seed(config.seed)
    teacher = FlowTeacher(shape)
    teacher.normaliser.load_state_dict(normaliser_of(shown, shape, motions).state_dict())
    windows = windows_for(shown, shape, shape.observation_steps, shape.horizon)
    batches = batches_of(lambda rows: windows[frames[rows.numpy()]], len(frames), settings.batch_size, config.seed)

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator, share: Share) -> Tensor:
        draws = [share.of(draw) for draw in teacher.training_draws(settings.batch_size, generator)]
        batch = moved(batch, shape, motions, settings.batch_size, generator, share)
        value: Tensor = model(observation_of(batch), batch["action"], *draws)
        return value

    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        fit(Accelerator(cpu=True), teacher, batches, loss, settings, config.seed, Path(folder),
            lambda model, _: kept.update({name: value.clone() for name, value in model.state_dict().items()}),
            lambda step, value: None, "teach")  # fmt: skip
    teacher.load_state_dict(kept)
    return teacher.eval()


def errors(teacher: FlowTeacher, shown: Demonstrations, seed: int, first: bool) -> dict[str, Any]:
    """Pose errors at first frames of episodes, or at first and other ones."""
    shape = teacher.shape
    frames = first_and_other_frames(shown.episode_index, FRAMES, seed)
    if first:
        frames = np.flatnonzero(np.diff(shown.episode_index, prepend=-1))[:FRAMES]
    batch = windows_for(shown, shape, shape.observation_steps, shape.horizon)[frames]
    chunks = teacher.sample(observation_of(batch), SAMPLES, SOLVER_STEPS, torch.Generator().manual_seed(seed))
    return summarise_errors(pose_errors(chunks.numpy(), batch["action"].numpy(), pose_layout(shape.action_names)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--config", nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--demonstrations", type=int, default=0, help="train on so many of them only; 0: all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = Config()
    for path in given.config:
        config = apply_preset(config, find_preset(path))
    spec = open_world(config).spec
    shown = Demonstrations.load(given.run / "demos", spec)
    held_out = Demonstrations.load(given.run / "starts" / HELD_OUT_FOLDER, spec)
    count = given.demonstrations or shown.num_episodes
    frames = np.flatnonzero(shown.episode_index < count)
    print("| variant | training [mm] | new scenes [mm] | ratio | first frames: training [mm] | new scenes [mm] | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in given.variants:
        began = time.process_time()
        chosen = replace(
            config, observation=replace(config.observation, **{**PLAIN, **VARIANTS[name]}),
            teacher=replace(config.teacher, training_steps=given.steps),
        )  # fmt: skip
        teacher = train(chosen, chosen.shape(spec), shown, frames)
        seconds = time.process_time() - began
        row: dict[str, Any] = {"task": config.task, "variant": name, "steps": given.steps, "demonstrations": count,
                               "cpu_s": seconds}  # fmt: skip
        for where, demonstrations in (("training", shown), ("new", held_out)):
            row[where] = errors(teacher, demonstrations, config.seed, first=False)
            row[f"{where}_first"] = errors(teacher, demonstrations, config.seed, first=True)
        means = [1000 * row[each]["position_m"]["mean"] for each in ("training", "new", "training_first", "new_first")]
        print(f"| {name} | {means[0]:.1f} | {means[1]:.1f} | {means[1] / means[0]:.2f} | {means[2]:.1f} | {means[3]:.1f} | "
              f"{seconds:.0f} |", flush=True)  # fmt: skip
        _store(row)


def _store(row: dict[str, Any]) -> None:
    """Add a row to the results, in place of one of the same variant."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"hardware": hardware(None), "rows": []}
    same = ("task", "variant", "steps", "demonstrations")
    found["rows"] = [each for each in found["rows"] if any(each[name] != row[name] for name in same)] + [row]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
