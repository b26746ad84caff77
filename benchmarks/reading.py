"""Does training wait for its data? The share of time spent waiting for batches with cameras, against a stated step.

    OMP_NUM_THREADS=1 python benchmarks/reading.py [--folder DEMOS] [--steps 40] [--target benchmarks/results/reading.json]

Takes demonstrations with cameras from a folder, or records some of `detour` first (about half a minute): five cameras,
64 x 64, a cloud of 512 points. Then trains a small network on batches of 64 windows of two frames: three convolutions a
view, a PointNet of two layers, a head of two, AdamW, one thread. It is lighter than a real encoder, so its step is short
and the waiting shares are on the high side. A share is the time spent in asking for the next batch, by all time. Three ways of
reading: by the training process itself, the same with everything kept in memory after a first pass, and by one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import envs
from distill.store.machine import hardware
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstrations
from envs.panda.recording import record, stored_starts
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from envs.windows import ACTION, WindowDataset, batch_loader

ROOT = Path(__file__).resolve().parents[1]
BATCH, OBSERVATION_STEPS, HORIZON, WARM_UP = 64, 2, 16, 5
READERS = {"itself": (0, 0), "itself, kept in memory": (8192, 0), "one worker": (0, 1)}
"""Megabytes of cache, workers."""


class SmallEncoder(nn.Module):
    """A stand-in: every view and the cloud to 64 numbers, all of them and the state to the chunk."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        super().__init__()
        self.views = nn.ModuleDict()
        for name, values in batch.items():
            if name.startswith((IMAGES, DEPTH)):
                self.views[name.replace(".", "_")] = nn.Sequential(
                    nn.Conv2d(values.shape[2], 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
                    nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(64),
                )  # fmt: skip
        self.points = nn.Sequential(nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 64))
        self.head = nn.Sequential(nn.LazyLinear(256), nn.ReLU(), nn.LazyLinear(batch[ACTION][0].numel()))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [batch[STATE].flatten(1)]
        for name, values in batch.items():
            if name.startswith((IMAGES, DEPTH)):
                known = values.nan_to_num(0.0).flatten(0, 1)
                parts.append(self.views[name.replace(".", "_")](known).view(len(values), -1))
            elif name == POINTS:
                parts.append(self.points(values).amax(dim=2).flatten(1))
        chunk: Tensor = self.head(torch.cat(parts, dim=1)).view_as(batch[ACTION])
        return chunk


def recorded(folder: Path) -> dict[str, float]:
    """Demonstrations of `detour` in a folder; what recording and storing them took."""
    env = envs.make("detour", cameras=CameraSettings())
    begin = time.process_time()
    episodes = [
        record(env, start, mode, number)
        for number, start in enumerate(stored_starts("detour", 0, "train", 12)) for mode in env.spec_task.modes
    ]  # fmt: skip
    found = [episode for episode in episodes if episode is not None]
    demonstrations = Demonstrations.from_episodes(env.spec_task, found, range(len(found)))
    demonstrations.save(folder)
    env.close()
    return {"record_ms_a_frame": (time.process_time() - begin) * 1e3 / demonstrations.num_frames}


def train(dataset: WindowDataset, workers: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step, of waiting for its batch, and the share of waiting."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, len(dataset), (steps + WARM_UP, BATCH)).tolist()
    network = SmallEncoder(dataset[rows[0]])
    network(dataset[rows[0]])  # the lazy layers take their shapes
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    if dataset._room:
        for frame in range(len(dataset)):
            dataset[frame]
    loader = batch_loader(dataset, rows, workers)
    waiting, working, last = [], [], time.perf_counter()
    for batch in loader:
        got = time.perf_counter()
        loss = (network(batch) - batch[ACTION]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = time.perf_counter()
        waiting.append(got - last)
        working.append(done - got)
        last = done
    wait, step = sum(waiting[WARM_UP:]), sum(working[WARM_UP:])
    return {"wait_ms": wait / steps * 1e3, "step_ms": step / steps * 1e3, "waiting_share": wait / (wait + step)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="demonstrations with cameras; without, some are recorded")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/reading.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        recording = {} if arguments.folder else recorded(folder)
        demonstrations = Demonstrations.load(folder)
        if demonstrations.cameras is None:
            raise SystemExit(f"{folder} holds demonstrations without cameras")
        shapes = demonstrations.cameras.spec.shapes()
        views = [name for name in shapes if name.endswith((".front", ".wrist"))]
        wanted = {
            "state": [], "points": [name for name in shapes if name == POINTS],
            "RGB of two cameras": [name for name in views if name.startswith(IMAGES)], "RGB-D of two cameras": views,
            "everything": list(shapes),
        }  # fmt: skip
        rows: list[dict[str, Any]] = []
        for modality, features in wanted.items():
            for reader, (cache_mb, workers) in READERS.items():
                dataset = WindowDataset(
                    demonstrations, features, observation_steps=OBSERVATION_STEPS, horizon=HORIZON, cache_mb=cache_mb
                )
                rows.append({"modality": modality, "reader": reader, **train(dataset, workers, arguments.steps)})
        frames = demonstrations.num_frames
        stored = {path.name: path.stat().st_size / frames for path in sorted((folder / "cameras").glob("*.safetensors"))}
    result = {
        "hardware": hardware(None), "threads": 1, "torch": torch.__version__, "load_average": os.getloadavg(),
        "task": demonstrations.task, "frames": frames, "batch": BATCH, "observation_steps": OBSERVATION_STEPS,
        "steps": arguments.steps, "bytes_a_frame": {**stored, "all": sum(stored.values())}, **recording, "rows": rows,
    }  # fmt: skip
    arguments.target.parent.mkdir(exist_ok=True)
    arguments.target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['hardware']}, one thread; {frames} frames of {result['task']}, {sum(stored.values()):.0f} bytes each\n")
    print("| observation | read by | training step, ms | waiting, ms | share of waiting |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['modality']} | {row['reader']} | {row['step_ms']:.1f} | {row['wait_ms']:.1f} | "
              f"{100 * row['waiting_share']:.1f} % |")  # fmt: skip


if __name__ == "__main__":
    main()
