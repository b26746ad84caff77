"""Demonstrations: one episode, all episodes of a task flat in memory and on disk, and windows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from envs.cameras.frames import CameraFrames
from envs.specs import ActionSpec, TaskSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Demonstration:
    """One successful episode of an expert; step t holds the observation before action t.

    state: `[L, S]` float32; action: `[L, A]` float32; tool: `[L, 3]` tool centre [m];
    start: `[D]` float64; mode: the mode that the environment observed; cameras: the L camera frames, or None.
    """

    state: np.ndarray
    action: np.ndarray
    tool: np.ndarray
    start: np.ndarray
    mode: str
    cameras: CameraFrames | None = None


@dataclass(frozen=True)
class Demonstrations:
    """All episodes of a task, frame after frame. F frames, E episodes.

    spec: their task.
    state: `[F, S]` float32; action: `[F, A]` float32; tool: `[F, 3]` float32 [m].
    episode_index: `[F]` int64, 0 .. E-1, non-decreasing.
    episode_mode: `[E]` int64 index in `spec.modes`; episode_start: `[E, D]` float64.
    start_index: `[E]` int64, index of the episode's start among the stored starts.
    cameras: the F camera frames, or None.

    Raises ValueError for wrong shapes or dtypes, values that are not finite, and indices out of range.
    """

    spec: TaskSpec
    state: np.ndarray
    action: np.ndarray
    tool: np.ndarray
    episode_index: np.ndarray
    episode_mode: np.ndarray
    episode_start: np.ndarray
    start_index: np.ndarray
    cameras: CameraFrames | None = None

    def __post_init__(self) -> None:
        frames, episodes = len(self.state), len(self.episode_mode)
        spec = self.spec
        expected: dict[str, tuple[tuple[int, ...], type]] = {
            "state": ((frames, len(spec.state_names)), np.float32),
            "action": ((frames, spec.action.size), np.float32),
            "tool": ((frames, 3), np.float32),
            "episode_index": ((frames,), np.int64),
            "episode_mode": ((episodes,), np.int64),
            "episode_start": ((episodes, len(spec.start_names)), np.float64),
            "start_index": ((episodes,), np.int64),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} of task {spec.name!r} must be {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} of task {spec.name!r} has values that are not finite")
        steps = np.diff(self.episode_index)
        whole = frames > 0 and self.episode_index[0] == 0 and self.episode_index[-1] == episodes - 1
        if not whole or not np.isin(steps, (0, 1)).all():
            raise ValueError(f"episode_index must go 0, .., {episodes - 1} without gaps, every episode having frames")
        if not ((self.episode_mode >= 0) & (self.episode_mode < len(spec.modes))).all():
            raise ValueError(f"episode_mode must be in 0 .. {len(spec.modes) - 1}, got {np.unique(self.episode_mode)}")
        if self.cameras is not None and self.cameras.num_frames != frames:
            raise ValueError(f"the cameras saw {self.cameras.num_frames} frames, the demonstrations have {frames}")

    @property
    def task(self) -> str:
        return self.spec.name

    @property
    def num_frames(self) -> int:
        return len(self.state)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_mode)

    @classmethod
    def from_episodes(
        cls, spec: TaskSpec, episodes: Sequence[Demonstration], start_index: Sequence[int] | np.ndarray
    ) -> Demonstrations:
        """Joins episodes; `start_index[i]`: index of episode i's start among the stored starts.

        Raises ValueError without episodes, and when only some have cameras or their cameras differ.
        """
        if not episodes or len(episodes) != len(start_index):
            raise ValueError(f"need episodes and one start index each, got {len(episodes)} and {len(start_index)}")
        filmed = [e.cameras for e in episodes if e.cameras is not None]
        if filmed and len(filmed) != len(episodes):
            raise ValueError(f"{len(filmed)} of {len(episodes)} episodes were recorded with cameras, expected all or none")
        return cls(
            spec=spec,
            state=np.concatenate([e.state for e in episodes]).astype(np.float32),
            action=np.concatenate([e.action for e in episodes]).astype(np.float32),
            tool=np.concatenate([e.tool for e in episodes]).astype(np.float32),
            episode_index=np.repeat(np.arange(len(episodes)), [len(e.state) for e in episodes]).astype(np.int64),
            episode_mode=np.array([spec.modes.index(e.mode) for e in episodes], dtype=np.int64),
            episode_start=np.stack([e.start for e in episodes]).astype(np.float64),
            start_index=np.asarray(start_index, dtype=np.int64),
            cameras=CameraFrames.join(filmed) if filmed else None,
        )

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """``{"state": {"min", "max", "mean", "std"}, "action": {..}}``, each `[S]` or `[A]` float64."""
        return {
            name: {
                "min": values.min(axis=0).astype(np.float64),
                "max": values.max(axis=0).astype(np.float64),
                "mean": values.mean(axis=0, dtype=np.float64),
                "std": values.std(axis=0, dtype=np.float64),
            }
            for name, values in (("state", self.state), ("action", self.action))
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``frames.safetensors``, ``info.json`` and ``statistics.json`` into `folder` (created if needed).

        Camera frames go into its sub-folder ``cameras``, see `CameraFrames.save`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        save_file(arrays, str(folder / "frames.safetensors"))
        info = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "num_frames": self.num_frames,
            "num_episodes": self.num_episodes,
            "episodes_per_mode": {
                mode: int((self.episode_mode == index).sum()) for index, mode in enumerate(self.spec.modes)
            },
            "spec": asdict(self.spec),
        }
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n")
        numbers = {
            part: {name: values.tolist() for name, values in table.items()} for part, table in self.statistics().items()
        }
        (folder / "statistics.json").write_text(json.dumps(numbers, indent=1) + "\n")
        if self.cameras is not None:
            self.cameras.save(folder / "cameras")

    @classmethod
    def load(cls, folder: str | Path, spec: TaskSpec | None = None) -> Demonstrations:
        """Reads what `save` wrote. With `spec`, refuses demonstrations of any other task; its ``max_steps`` may differ.

        Raises FileNotFoundError for a missing file; ValueError for another schema or task, for inconsistent names, shapes or
        counts, and for values that are not finite.
        """
        folder = Path(folder)
        for name in ("info.json", "frames.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; expected demonstrations")
        try:
            return cls._load(folder, spec)
        except (FileNotFoundError, ValueError):
            raise
        except Exception as error:  # damage can break the libraries that read it in any way
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder} holds no whole demonstrations ({type(error).__name__}: {said})") from error

    @classmethod
    def _load(cls, folder: Path, spec: TaskSpec | None) -> Demonstrations:
        info = json.loads((folder / "info.json").read_text())
        if info.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{folder}: schema_version is {info.get('schema_version')}, expected {SCHEMA_VERSION}")
        stored = _spec_from_json(info["spec"], folder)
        if spec is not None and stored.name != spec.name:
            raise ValueError(f"{folder} holds demonstrations of task {stored.name!r}, wanted {spec.name!r}")
        different = [] if spec is None else [
            key for key, value in asdict(spec).items() if asdict(stored)[key] != value and key != "max_steps"
        ]  # fmt: skip
        if spec is not None and different:
            raise ValueError(f"{folder}: task {spec.name!r} has changed since ({different} differ): record again")
        arrays = load_file(str(folder / "frames.safetensors"))
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"{folder}: frames.safetensors must hold {sorted(_ARRAYS)}, got {sorted(arrays)}")
        cameras = CameraFrames.load(folder / "cameras") if (folder / "cameras").is_dir() else None
        loaded = cls(spec=spec or stored, **arrays, cameras=cameras)
        counts = (info["num_frames"], info["num_episodes"])
        if counts != (loaded.num_frames, loaded.num_episodes):
            raise ValueError(
                f"{folder}: info.json counts {counts} frames, episodes; got {loaded.num_frames, loaded.num_episodes}"
            )
        return loaded


_ARRAYS = ("state", "action", "tool", "episode_index", "episode_mode", "episode_start", "start_index")


def _spec_from_json(stored: dict[str, Any], folder: Path) -> TaskSpec:
    def lists_to_tuples(table: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}

    try:
        return TaskSpec(**{**lists_to_tuples(stored), "action": ActionSpec(**lists_to_tuples(stored["action"]))})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder}: the spec in info.json can not be read: {error}") from error


def windows(
    demonstrations: Demonstrations, frames: np.ndarray, observation_steps: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """For frame indices `[N]`: state history `[N, O, S]` that ends at the frame, action chunk `[N, T, A]` that begins there.

    A window stays within its episode: the first state is repeated before its start, the last action after its end.
    Raises ValueError for a frame outside 0 .. F-1.
    """
    history, future = window_frames(demonstrations, frames, observation_steps, horizon)
    return demonstrations.state[history], demonstrations.action[future]


def window_frames(
    demonstrations: Demonstrations, frames: np.ndarray, observation_steps: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """The frame indices of `windows`: history `[N, O]` and future `[N, T]`. Raises ValueError as `windows`."""
    frames = np.asarray(frames, dtype=np.int64)
    if frames.ndim != 1 or (frames.size and (frames.min() < 0 or frames.max() >= demonstrations.num_frames)):
        raise ValueError(f"frames must be [N] within 0 .. {demonstrations.num_frames - 1}, got shape {frames.shape}")
    episode = demonstrations.episode_index[frames]
    first = np.searchsorted(demonstrations.episode_index, episode, side="left")
    last = np.searchsorted(demonstrations.episode_index, episode, side="right") - 1
    history = np.maximum(frames[:, None] + np.arange(1 - observation_steps, 1), first[:, None])
    future = np.minimum(frames[:, None] + np.arange(horizon), last[:, None])
    return history, future
