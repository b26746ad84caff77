"""Recorded demonstrations of a gymnasium environment, in any format that envs/recorded reads."""

from __future__ import annotations

import numpy as np

from envs.cameras.frames import pack
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration
from envs.gym.env import GymCameras
from envs.recorded import open_recorded
from envs.recorded.observations import RecordedObservations
from envs.specs import STATE, TaskSpec


def recorded_demonstrations(path: str, spec: TaskSpec, cameras: CameraSettings | None) -> RecordedObservations:
    """The recording at the task's control period. Raises ValueError where it does not fit the task."""
    features = (STATE, *(GymCameras(cameras).spec.shapes() if cameras is not None else ()))
    try:
        recorded = open_recorded(path, {}, features)
    except (OSError, ImportError) as error:
        raise ValueError(f"world.demonstrations: {error}") from error
    recorded = recorded.only(features, action=True).at_period(spec.dt_s)
    for what, got, wanted in (("states", recorded.features[STATE][0], len(spec.state_names)),
                              ("actions", recorded.action_size, spec.action.size)):  # fmt: skip
        if got != wanted:
            raise ValueError(f"world.demonstrations: {path} has {what} of {got} numbers, the mapping gives {wanted}: "
                             f"{list(spec.state_names if what == 'states' else spec.action.names)}")  # fmt: skip
    if len(recorded.episodes) < 2:
        raise ValueError(f"world.demonstrations: {path} holds {len(recorded.episodes)} episode, expected at least 2: "
                         "one is held out")
    return recorded


def held_out_episodes(recorded: RecordedObservations, most: int) -> list[int]:
    """The episodes that policies are not trained on: every tenth, at least one, at most `most`."""
    count = len(recorded.episodes)
    wanted = min(most, max(1, count // 10))
    return np.unique(np.linspace(0, count - 1, wanted + 1).astype(int)[1:]).tolist()


def demonstration(
    recorded: RecordedObservations, episode: int, spec: TaskSpec, cameras: CameraSettings | None
) -> Demonstration:
    """One recorded episode. Its start is the episode's number: which seed it had was not recorded."""
    first = int(np.sum(recorded.episodes[:episode]))
    frames = np.arange(first, first + int(recorded.episodes[episode]), recorded.clock.stride)
    seen = {name: values[:, -1] for name, values in recorded.read(frames, 1).items()}
    state = seen.pop(STATE).astype(np.float32)
    action = recorded.actions(frames, 1)[:, 0].astype(np.float32)
    filmed = None
    if cameras is not None:
        count = {"unknown_pixels": 0, "repeated_points": 0}
        rows = [{name: np.asarray(values[row], np.float32) for name, values in seen.items()} for row in range(len(frames))]
        filmed = pack(GymCameras(cameras).spec, rows, [count] * len(rows), [{}] * len(rows))
    start = np.array([float(episode)])
    return Demonstration(state, action, np.zeros((len(frames), 3), np.float32), start, spec.modes[0], filmed)
