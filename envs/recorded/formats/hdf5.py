"""Demonstrations of robomimic in HDF5: ``data/demo_*/obs/*`` and ``data/demo_*/actions``, read by h5py frame by frame."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import frame_shape, in_our_units, join, named, optional
from envs.recorded.observations import RecordedObservations
from envs.recorded.timing import Clock
from envs.recorded.units import AS_IT_IS, Unit, is_judged, judge, looked_at
from envs.specs import ACTION, DEPTH, IMAGES, POINTS, STATE

STATES = ("eef_pos", "eef_quat", "gripper_qpos")
"""Of every robot, in this order, the state, unless `names` says otherwise."""
INNER = "obs/actions"
"""Mimic's files hold the last action beside what was observed, of another size than the actions."""


class Hdf5Recording(RecordedObservations):
    """A file of robomimic's. Only numbers that lie in this very file are read: links to other files are refused."""

    def __init__(self, path: Path, names: Mapping[str, str], dt_s: float = 0.0) -> None:
        """ImportError without h5py; ValueError for what is malformed (docs/data.md). dt_s: instead of the file's frequency."""
        h5py = optional("h5py", path)
        self._h5py = h5py
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: cannot be opened as HDF5, it is cut off or another file: {_said(error)}") from error
        try:
            self._demos = self._find_demos(path)
            self._judged: dict[str, Unit] = {}
            self._checked_sets: dict[str, list[Any]] = {}
            links = self._links(self._demos[0])
            first = {key: self._get(self._demos[0], key) for key, local in links.items() if local}
            foreign = [key for key, local in links.items() if not local]
            keys = [key for key in first if first[key].dtype.kind in "fiub"]
            self._first = first
            self._keys = named(path, [*first, *foreign], _defaults(keys), names)
            used = [key for each in self._keys.values() for key in each]
            for key in used:
                if key in foreign:
                    raise ValueError(self._link_said(self._demos[0], key))
            lengths, notes = self._lengths(path, used)
            self._each = {name: {key: frame_shape(path, key, name, first[key].shape[1:], first[key].dtype) for key in keys}
                          for name, keys in self._keys.items()}  # fmt: skip
            shapes = {name: join(list(each.values())) for name, each in self._each.items()}
            size = shapes.pop(ACTION, (0,))[0]
            left = {key: "the last action, as an observation" if key == INNER else "by names" if names.get(key) == "" else
                    "no known name" for key in first if key not in used}  # fmt: skip
            left |= dict.fromkeys(foreign, "a link to elsewhere")
            super().__init__(
                path, shapes, lengths, action_size=size, clock=Clock.even(lengths, dt_s or self._period()), parts=self._keys,
                left_out=left, notes=notes,
            )  # fmt: skip
        except BaseException:
            self._file.close()
            raise

    # -- what is refused -------------------------------------------------------------------------------------------

    def _find_demos(self, path: Path) -> list[str]:
        data = self._file.get("data")
        names = list(data) if isinstance(data, self._h5py.Group) else []
        found = [name for name in names if re.fullmatch(r"(demo|episode)_\d+", name)]
        if not found:
            raise ValueError(f"{path}: got {sorted(self._file)[:8]} with no data/demo_0, expected a file of robomimic's")
        return sorted(found, key=lambda name: int(name.rpartition("_")[2]))

    def _links(self, demo: str) -> dict[str, bool]:
        """The data sets of an episode and whether they lie in this file: those of obs by their names, groups within it by
        their path, and ``actions``; an ``obs/actions`` is not these."""
        found: dict[str, bool] = {}
        group = self._file["data"][demo]
        hard, kinds = self._h5py.HardLink, self._h5py

        seen: set[int] = set()

        def walk(inside: Any, lead: str) -> None:
            place = int(kinds.h5o.get_info(inside.id).addr)
            if place in seen:  # a few dozen groups that hold the next one twice take for ever
                raise ValueError(f"{group.name}/obs/{lead} is linked twice; write the episode again")
            seen.add(place)
            for key in inside:
                name = INNER if lead + key == "actions" else lead + key
                if not isinstance(inside.get(key, getlink=True), hard):
                    found[name] = False
                elif isinstance(inside[key], kinds.Group):
                    walk(inside[key], f"{lead}{key}/")
                elif isinstance(inside[key], kinds.Dataset):
                    found[name] = True

        observed = group.get("obs")
        if isinstance(observed, kinds.Group):
            walk(observed, "")
        if "actions" in group:
            local = isinstance(group.get("actions", getlink=True), hard)
            if not local or isinstance(group["actions"], kinds.Dataset):
                found["actions"] = local
        return found

    def _place(self, demo: str, key: str) -> str:
        return f"data/{demo}/{key if key in ('actions', INNER) else 'obs/' + key}"

    def _get(self, demo: str, key: str) -> Any:
        """A data set that lies in this file, or None; links are not followed."""
        held = self._file["data"][demo]
        for part in self._place(demo, key).split("/")[2:]:
            if not isinstance(held, self._h5py.Group) or not isinstance(held.get(part, getlink=True), self._h5py.HardLink):
                return None
            held = held[part]
        return held if isinstance(held, self._h5py.Dataset) else None

    def _link_said(self, demo: str, key: str) -> str:
        return (f"{self._file.filename}: {self._place(demo, key)} is a link to elsewhere, expected the data itself; leave it "
                f"out: --names {key}=")  # fmt: skip

    def _lengths(self, path: Path, used: list[str]) -> tuple[list[int], list[str]]:
        """Frames of each episode, by the data. Raises ValueError where there are fewer than num_samples says."""
        lengths, less = [], []
        for demo in self._demos:
            held = [each for key in used if (each := self._get(demo, key)) is not None and each.ndim]
            if not held:
                raise ValueError(f"{path}: data/{demo} has none of {used}, which data/{self._demos[0]} has")
            sizes = [each.shape[0] for each in held]
            lengths.append(max(set(sizes), key=sizes.count))
            told = self._file["data"][demo].attrs.get("num_samples")
            if told is not None and int(told) > lengths[-1]:
                raise ValueError(f"{path}: data/{demo} has {lengths[-1]} frames, num_samples is {int(told)}, expected as many "
                                 f"in each; it is "
                                 "cut off")  # fmt: skip
            less += [demo] if told is not None and int(told) < lengths[-1] else []
        return lengths, [f"num_samples says fewer frames than {less[:4]} have: all are read"] if less else []

    def look(self, feature: str) -> str:
        said = []
        for key in self._each[feature]:
            self._checked_sets[key] = self._every(key)
            if is_judged(feature):
                frames = looked_at(self._ends)
                if self._first[key].dtype == np.uint8:
                    frames = frames[:: max(len(frames) // 8, 1)]
                stored = [self._stored(key, np.array([frame]))[0] for frame in frames.tolist()]
                self._judged[key] = judge(self.path, key, feature, frames.tolist(), stored)
                said.append(self._judged[key].said)
        return "; ".join(dict.fromkeys(said)) or "as recorded"

    def _every(self, key: str) -> list[Any]:
        return [self._whole(demo, key, length) for demo, length in zip(self._demos, self.episodes, strict=True)]

    def _whole(self, demo: str, key: str, length: int) -> Any:
        """A data set all of whose numbers were written; what was not reads as zeros, in silence."""
        path, links = self.path, self._links(demo)
        if key not in links:
            raise ValueError(f"{path}: data/{demo} has no {key!r}, which data/{self._demos[0]} has; got {sorted(links)}")
        if not links[key]:
            raise ValueError(self._link_said(demo, key))
        held, first = self._get(demo, key), self._first[key]
        if held.shape[1:] != first.shape[1:] or held.dtype != first.dtype:
            raise ValueError(f"{path}: {key} of data/{demo} is {held.shape[1:]} {held.dtype} in each frame, expected "
                             f"{first.shape[1:]} {first.dtype} as in data/{self._demos[0]}")  # fmt: skip
        if held.shape[0] != length:
            raise ValueError(f"{path}: {key} of data/{demo} has {held.shape[0]} frames, the others {length}, expected as many "
                             f"in each")
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

    def _period(self) -> float | None:
        """The control period [s], where the file tells the environment's frequency."""
        try:
            hertz = float(json.loads(self._file["data"].attrs["env_args"])["env_kwargs"]["control_freq"])
        except (KeyError, TypeError, ValueError):
            return None
        return 1 / hertz if hertz > 0 else None

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        parts = []
        for key, shape in self._each[feature].items():
            unit = self._judged.get(key, AS_IT_IS)
            parts.append(in_our_units(feature, self._stored(key, frames_M), shape, unit, f"{self.path}: {key}", cast=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return self.frames(ACTION, frames_M)

    def _stored(self, key: str, frames_M: np.ndarray) -> np.ndarray:
        """What is stored in M rising frames, `[M, ..]`."""
        if key not in self._checked_sets:
            self._checked_sets[key] = self._every(key)
        episode_M = self.episode_index(frames_M)
        rows = [np.zeros((0, *self._first[key].shape[1:]), self._first[key].dtype)]
        for episode in np.unique(episode_M).tolist():
            steps_M = frames_M[episode_M == episode] - (self._ends[episode] - self.episodes[episode])
            try:
                rows.append(np.asarray(self._checked_sets[key][episode][steps_M]))
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(f"{self.path}: {key} of data/{self._demos[episode]} cannot be read: {_said(error)}; it is "
                                 f"damaged, or packed "
                                 f"by a filter that is not here (pip install hdf5plugin); or leave it out: --names "
                                 f"{key}=") from error
        return np.concatenate(rows)

    def files(self) -> tuple[list[Path], list[Path]]:
        return [], [self.path]


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _defaults(keys: list[str]) -> dict[str, str]:
    """What robomimic's keys are: of every robot the hand's pose and the fingers, of every camera its images."""
    found = {"actions": ACTION, "object": "observation.environment_state", "point_cloud": POINTS}
    robots = sorted({key.split("_")[0] for key in keys if re.match(r"robot\d+_", key)})
    found |= {f"{robot}_{part}": STATE for robot in robots for part in STATES}
    found |= {key: f"{IMAGES}.{key.removesuffix('_image')}" for key in keys if key.endswith("_image")}
    found |= {key: f"{IMAGES}.{key.removesuffix('_rgb')}" for key in keys if key.endswith("_rgb")}
    return found | {key: f"{DEPTH}.{key.removesuffix('_depth')}" for key in keys if key.endswith("_depth")}
