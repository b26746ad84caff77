"""Demonstrations of robomimic in HDF5: ``data/demo_*/obs/*`` and ``data/demo_*/actions``, read by h5py frame by frame."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import ACTION, frame_shape, in_our_units, is_bright, named, optional
from envs.recorded.observations import RecordedObservations
from envs.specs import DEPTH, IMAGES, POINTS, STATE

STATES = ("eef_pos", "eef_quat", "gripper_qpos")
"""Of every robot, in this order, the state, unless `names` says otherwise."""


class Hdf5Recording(RecordedObservations):
    """A file of robomimic's. Only numbers that lie in this very file are read: links to other files are refused."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        """ImportError without h5py; ValueError for what is malformed: see docs/recorded.md."""
        h5py = optional("h5py", "hdf5", path)
        self._h5py = h5py
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: cannot be opened as HDF5, it is cut off or another file: {_said(error)}") from error
        try:
            self._demos = self._find_demos(path)
            sets = [self._sets_of(path, demo) for demo in self._demos]
            keys = [key for key in sets[0] if sets[0][key].dtype.kind in "fiub"]
            self._keys = named(path, keys, _defaults(keys), names)
            used = [key for each in self._keys.values() for key in each]
            self._sets = [{key: self._whole(path, demo, each, key) for key in used}
                          for demo, each in zip(self._demos, sets, strict=True)]  # fmt: skip
            lengths = [self._length(path, demo, each) for demo, each in zip(self._demos, self._sets, strict=True)]
            self._each = {name: self._shapes(path, name) for name in self._keys}
            shapes = {name: _joined(list(each.values())) for name, each in self._each.items()}
            self._bright = {key for name, each in self._keys.items() for key in each
                            if is_bright(name, self._sets[0][key][:1])}  # fmt: skip
            size = shapes.pop(ACTION, (0,))[0]
            super().__init__(path, shapes, lengths, action_size=size, dt_s=self._period())
            self._check_numbers()
        except BaseException:
            self._file.close()
            raise

    # -- what is refused when it is opened -------------------------------------------------------------------------

    def _find_demos(self, path: Path) -> list[str]:
        data = self._file.get("data")
        found = [name for name in data if re.fullmatch(r"demo_\d+", name)] if isinstance(data, self._h5py.Group) else []
        if not found:
            raise ValueError(f"{path}: got {sorted(self._file)[:8]} with no data/demo_0, expected a file of robomimic's")
        return sorted(found, key=lambda name: int(name.removeprefix("demo_")))

    def _sets_of(self, path: Path, demo: str) -> dict[str, Any]:
        """The data sets of an episode: those of obs by their names, and ``actions``."""
        group = self._file["data"][demo]
        found: dict[str, Any] = {}
        for where, inside in (("obs", group.get("obs", {})), ("", group)):
            for key in inside:
                if not isinstance(inside.get(key, getlink=True), self._h5py.HardLink):
                    raise ValueError(f"{path}: data/{demo}/{where}/{key} is a link to elsewhere, expected the data itself")
                if isinstance(inside[key], self._h5py.Dataset) and (where or key == "actions"):
                    found[key] = inside[key]
        return found

    def _whole(self, path: Path, demo: str, sets: Mapping[str, Any], key: str) -> Any:
        """A data set all of whose numbers were written; what was not reads as zeros, in silence."""
        if key not in sets:
            raise ValueError(f"{path}: data/{demo} has no {key!r}, which data/{self._demos[0]} has; got {sorted(sets)}")
        held, first = sets[key], self._file["data"][self._demos[0]]
        first = (first if key == "actions" else first["obs"])[key]
        if held.shape[1:] != first.shape[1:] or held.dtype != first.dtype:
            raise ValueError(f"{path}: {key} of data/{demo} is {held.shape[1:]} {held.dtype} in each frame, expected "
                             f"{first.shape[1:]} {first.dtype} as in data/{self._demos[0]}")  # fmt: skip
        if held.external or held.is_virtual:
            raise ValueError(f"{path}: {key} of data/{demo} lies in other files, expected the data itself")
        if held.chunks:
            expected = int(np.prod([-(-size // chunk) for size, chunk in zip(held.shape, held.chunks, strict=True)]))
            missing = expected - held.id.get_num_chunks()
        else:
            missing = int(held.size > 0 and held.id.get_storage_size() == 0)
        if missing:
            raise ValueError(f"{path}: {missing} chunks of {key} of data/{demo} were never written; they would read as zeros")
        return held

    def _length(self, path: Path, demo: str, sets: Mapping[str, Any]) -> int:
        lengths = {key: held.shape[0] if held.ndim else 0 for key, held in sets.items()}
        told = self._file["data"][demo].attrs.get("num_samples")
        length = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1 or length != (length if told is None else int(told)):
            also = "" if told is None else f" and num_samples is {int(told)}"
            raise ValueError(f"{path}: data/{demo} has {lengths} frames{also}, expected as many in each")
        return length

    def _shapes(self, path: Path, name: str) -> dict[str, tuple[int, ...]]:
        first = self._sets[0]
        return {key: frame_shape(path, key, name, first[key].shape[1:], first[key].dtype) for key in self._keys[name]}

    def _period(self) -> float | None:
        """The control period [s], where the file tells the environment's frequency."""
        try:
            hertz = float(json.loads(self._file["data"].attrs["env_args"])["env_kwargs"]["control_freq"])
        except (KeyError, TypeError, ValueError):
            return None
        return 1 / hertz if hertz > 0 else None

    def _check_numbers(self) -> None:
        """Every number of states and actions; images are looked at as they are read."""
        ends = np.cumsum(self.episodes)
        for begin, end in zip(ends - self.episodes, ends, strict=True):
            for name in {STATE, ACTION} & set(self._keys):
                frames_M = np.arange(begin, end)
                shape = (self.action_size,) if name == ACTION else self.features[STATE]
                self._finite(name, self.frames(name, frames_M), frames_M, shape)

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        episode_M = self.episode_index(frames_M)
        parts = []
        for key, shape in self._each[feature].items():
            rows = [self._stored(episode, key, frames_M[episode_M == episode]) for episode in np.unique(episode_M).tolist()]
            stored = np.concatenate(rows) if rows else np.zeros((0, *self._sets[0][key].shape[1:]), np.float32)
            parts.append(in_our_units(feature, stored, shape, key in self._bright))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return self.frames(ACTION, frames_M)

    def _stored(self, episode: int, key: str, frames_M: np.ndarray) -> np.ndarray:
        steps_M = frames_M - (self._ends[episode] - self.episodes[episode])
        try:
            return np.asarray(self._sets[episode][key][steps_M])
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path}: {key} of data/{self._demos[episode]} cannot be read: {_said(error)}") from error

    def files(self) -> tuple[list[Path], list[Path]]:
        return [], [self.path]


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return shapes[0] if len(shapes) == 1 else (sum(shape[-1] for shape in shapes),)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _defaults(keys: list[str]) -> dict[str, str]:
    """What robomimic's keys are: of every robot the hand's pose and the fingers, of every camera its images."""
    found = {"actions": ACTION, "object": "observation.environment_state", "point_cloud": POINTS}
    robots = sorted({key.split("_")[0] for key in keys if re.match(r"robot\d+_", key)})
    found |= {f"{robot}_{part}": STATE for robot in robots for part in STATES}
    found |= {key: f"{IMAGES}.{key.removesuffix('_image')}" for key in keys if key.endswith("_image")}
    return found | {key: f"{DEPTH}.{key.removesuffix('_depth')}" for key in keys if key.endswith("_depth")}
