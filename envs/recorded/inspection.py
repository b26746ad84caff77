"""What a recording is, as a dict of plain numbers and words: for the report, and to be looked at before a night of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.recorded.observations import RecordedObservations
from envs.specs import ACTION, STATE


def described(recorded: RecordedObservations, observation_steps: int = 1) -> dict[str, Any]:
    """How a recording is read, for ``report.json``: everything in it was chosen, and can be chosen otherwise.

    observation_steps: O of the windows.
    """
    features = {name: list(shape) for name, shape in recorded.features.items()}
    return {
        "path": str(recorded.path), "format": type(recorded).__name__, "frames": len(recorded),
        "episodes": len(recorded.episodes), "used_frames": int(recorded.usable.sum()), "features": features,
        "action_size": recorded.action_size,
        "parts": {name: list(keys) for name, keys in recorded.parts.items() if name in features or name == ACTION},
        "left_out": dict(recorded.left_out), "units": dict(recorded.units), "dt_s": recorded.dt_s,
        "stride": recorded.clock.stride, "recorded_dt_s": recorded.clock.dt_s, "tasks": recorded.tasks(),
        "split": recorded.split_described(observation_steps), "notes": list(recorded.notes),
        "outliers": [{**vars(each), "said": each.said()} for each in recorded.outliers],
        "ranges": {name: recorded.ranges(name) for name in (STATE,) if name in recorded.features},
    }  # fmt: skip


def inspect(recorded: RecordedObservations, observation_steps: int = 1) -> dict[str, Any]:
    """`described`, and what else is worth a look: the ranges of actions, the lengths of episodes, gaps in time, one frame.

    The frame is the first one that is used; its pictures are read, so that what a policy would see can be shown.
    Raises ValueError as reading does.
    """
    told = described(recorded, observation_steps)
    if recorded.action_size:
        told["ranges"][ACTION] = recorded.ranges(ACTION)
    lengths = np.array(recorded.episodes)
    starts = np.concatenate([[0], recorded.clock.borders[:-1]])
    ends = np.cumsum(recorded.episodes)
    inner = [int(start) for start in starts if start and start not in set(ends.tolist())]
    frame = int(np.flatnonzero(recorded.usable)[0]) if recorded.usable.any() else 0
    seen = recorded.read([frame], observation_steps)
    told |= {
        "episode_frames": {"least": int(lengths.min()), "median": float(np.median(lengths)), "most": int(lengths.max())},
        "gaps": [{"frame": start, "episode": int(np.searchsorted(ends, start, side="right"))} for start in inner],
        "constant": {name: [each["name"] for each in rows if each["low"] == each["high"]]
                     for name, rows in told["ranges"].items()},
        "frame": {"index": frame, "instruction": recorded.instructions([frame])[0],
                  "values": {name: value[0, -1].tolist() for name, value in seen.items() if value.ndim == 3}},
        "warnings": _warnings(recorded, told),
    }  # fmt: skip
    return told


def _warnings(recorded: RecordedObservations, told: dict[str, Any]) -> list[str]:
    found = [each.said() for each in recorded.outliers]
    for name, rows in told["ranges"].items():
        small = [row["name"] for row in rows if 0 < row["high"] - row["low"] < 1e-6]
        if small:
            found.append(f"{name}: {', '.join(small)} move by less than 1e-6, which is taken as not at all; give them a "
                         f"larger unit")
    if recorded.dt_s is None:
        found.append("the recording does not say its rate; convert takes it as the policy's unless --recorded-dt-s says it")
    if len(told["tasks"]) > 1:
        found.append(f"{len(told['tasks'])} tasks: a policy with one instruction needs one of them: --instructions '...'")
    if not recorded.action_size:
        found.append("no actions are recorded; a conversion needs none")
    return found
