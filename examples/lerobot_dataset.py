"""Demonstrations of an embedded task as a LeRobot dataset, written by LeRobot's own writer, in LeRobot's environment.

    /path/to/lerobot/bin/python examples/lerobot_dataset.py runs/ten-minutes/demos ten-minutes-lerobot

Needs LeRobot with its extra `dataset`, and nothing of flow2one. State and actions; camera frames are not exported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.numpy import load_file


def export(demonstrations: Path, folder: Path) -> LeRobotDataset:
    """The dataset that was written to `folder`. Raises ValueError if it exists already."""
    if folder.exists():
        raise ValueError(f"{folder} already exists; name a new folder")
    spec = json.loads((demonstrations / "info.json").read_text())["spec"]
    held = load_file(str(demonstrations / "frames.safetensors"))
    columns = {"observation.state": ("state", spec["state_names"]), "action": ("action", spec["action"]["names"])}
    features = {
        name: {"dtype": "float32", "shape": (len(names),), "names": list(names)} for name, (_, names) in columns.items()
    }
    dataset = LeRobotDataset.create(folder.name, round(1 / spec["dt_s"]), features, root=folder, use_videos=False)
    last = np.append(np.diff(held["episode_index"]) > 0, True)
    for frame in range(len(last)):
        row = {name: held[ours][frame] for name, (ours, _) in columns.items()}
        dataset.add_frame({**row, "task": spec["summary"]})
        if last[frame]:
            dataset.save_episode()
    dataset.finalize()
    return dataset


if __name__ == "__main__":
    written = export(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {written.num_frames} frames in {written.num_episodes} episodes")
