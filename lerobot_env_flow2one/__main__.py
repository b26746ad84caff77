"""Demonstrations of an embedded task as a LeRobot data set (v3.0), written by LeRobot's own writer, in LeRobot's environment.

    python -m lerobot_env_flow2one runs/avoid-seed0/demos avoid-lerobot

State, environment state (the same numbers, for policies that need more than a state), actions, and the camera images, if there
are any. Without images the file needs nothing of flow2one, and can be run by its path.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.numpy import load_file


def export(demonstrations: Path, folder: Path) -> LeRobotDataset:
    """The data set that was written to `folder`. Raises ValueError if it exists already, or without demonstrations."""
    if folder.exists():
        raise ValueError(f"{folder} already exists; name a new folder")
    if not (demonstrations / "info.json").is_file():
        raise ValueError(f"{demonstrations} holds no demonstrations; expected the folder demos of a run")
    spec = json.loads((demonstrations / "info.json").read_text())["spec"]
    held = load_file(str(demonstrations / "frames.safetensors"))
    columns = {"observation.state": ("state", spec["state_names"]), "action": ("action", spec["action"]["names"]),
               "observation.environment_state": ("state", spec["state_names"])}  # fmt: skip
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": (len(names),), "names": list(names)} for name, (_, names) in columns.items()
    }
    images = _images(demonstrations / "cameras")
    for name, (_, size) in images.items():
        features[name] = {"dtype": "image", "shape": (*size, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(folder.name, round(1 / spec["dt_s"]), features, root=folder, use_videos=False)
    last = np.append(np.diff(held["episode_index"]) > 0, True)
    for frame in range(len(last)):
        row = {name: held[ours][frame] for name, (ours, _) in columns.items()}
        row |= {name: read(frame) for name, (read, _) in images.items()}
        dataset.add_frame({**row, "task": spec["summary"]})
        if last[frame]:
            dataset.save_episode()
    dataset.finalize()
    return dataset


def _images(cameras: Path) -> dict[str, Any]:
    """A function frame -> `[H, W, 3]` uint8 and the size of every image feature; {} without cameras."""
    if not cameras.is_dir():
        return {}
    from envs.cameras.frames import CameraFrames

    frames = CameraFrames.load(cameras)
    size = (frames.spec.settings.height, frames.spec.settings.width)
    names = [name for name in frames.spec.shapes() if name.startswith("observation.images.")]
    return {name: (lambda frame, name=name: frames.raw(name, [frame])[0], size) for name in names}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        written = export(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{sys.argv[2]}: {written.num_frames} frames in {written.num_episodes} episodes")
