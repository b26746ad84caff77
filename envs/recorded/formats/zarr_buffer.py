"""Replay buffers in zarr (Diffusion Policy, UMI, 3D Diffusion Policy, PointFlowMatch): ``data/*``, ``meta/episode_ends``."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.formats.zarr_files import ENDS, ArrayTold, ZarrFiles
from envs.recorded.keys import frame_shape, in_our_units, join, named, optional
from envs.recorded.observations import RecordedObservations
from envs.recorded.sources import refuse_pointer
from envs.recorded.timing import Clock
from envs.recorded.units import AS_IT_IS, Unit, is_judged, judge, looked_at
from envs.specs import ACTION, DEPTH, IMAGES, POINTS, STATE

STATES = ("state", "robot_state", "agent_pos", "robot_eef_pose")
"""The first of these that is there is the state, unless `names` says otherwise."""
NEXT_STATE = "robot_state"
"""PointFlowMatch stores no actions: what it learns to predict are the states that come next."""
CLOUD, COLOURS = "pcd_xyz", "pcd_color"
STAMPS = "timestamp"
"""When each frame was recorded [s]."""


class ZarrRecording(RecordedObservations):
    """A group in zarr format 2 or 3, a folder or a zip, read by the zarr library chunk by chunk."""

    def __init__(self, path: Path, names: Mapping[str, str], dt_s: float = 0.0) -> None:
        """ImportError without zarr; ValueError for what is malformed (docs/data.md). dt_s: instead of the time stamps."""
        zarr = optional("zarr", path)
        self._root, self._held = path, ZarrFiles(path)
        self._told = self._held.arrays()
        self._opened: dict[str, Any] = {}
        self._judged: dict[str, Unit] = {}
        try:
            store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path, read_only=True)
            self._group = zarr.open_group(store, path=self._held.top, mode="r", use_consolidated=False)
            self._held.check_places(ENDS)
            told_E = np.asarray(self._group[ENDS][:])
        except ValueError:
            raise
        except Exception as error:  # of the library's many kinds: whatever it is, the data cannot be read
            raise ValueError(f"{path}: cannot be read as a replay buffer with data/* and {ENDS}: {_said(error)}") from error
        why = {key: _why_left_out(told) for key, told in self._told.items()}
        defaults = _defaults([key for key in self._told if not why[key]])
        broken = {key: name for key, name in _defaults(list(self._told)).items()
                  if self._told[key].is_objects and key not in names}  # fmt: skip
        self._keys = named(path, self._told, defaults, names)
        if COLOURS in self._told and COLOURS not in names and self._keys.get(POINTS) == (CLOUD,):
            self._keys[POINTS] = (CLOUD, COLOURS)
        self._next = ACTION not in self._keys and self._keys.get(STATE) == (NEXT_STATE,)
        ends_E = self._check_ends(told_E)
        self._each = {name: {key: self._shape(name, key) for key in keys} for name, keys in self._keys.items()}
        shapes = {name: join(list(each.values())) for name, each in self._each.items()}
        size = shapes.pop(ACTION, shapes.get(STATE, (0,)) if self._next else (0,))[0]
        lengths = np.diff(ends_E, prepend=0).tolist()
        stamped = not dt_s and self._has_stamps(int(ends_E[-1])) and names.get(STAMPS) is None
        clock, notes = Clock.read(path, lengths, self._stored(STAMPS, slice(None)), None) if stamped else (
            Clock.even(lengths, dt_s or None), [])  # fmt: skip
        used = {key for keys in self._keys.values() for key in keys} | ({STAMPS} if stamped else set())
        left = {key: why[key] or ("by names" if names.get(key) == "" else "no known name")
                for key in self._told if key not in used}  # fmt: skip
        if self._next:
            notes.append(f"actions: the next frame's {NEXT_STATE}, as no action is stored")
        super().__init__(path, shapes, lengths, action_size=size, clock=clock, parts=self._keys, left_out=left, notes=notes)
        self.malformed = {name: self._objects(key) for key, name in broken.items() if name not in self._keys}

    # -- what is refused -------------------------------------------------------------------------------------------

    def _shape(self, name: str, key: str) -> tuple[int, ...]:
        told = self._told[key]
        if told.is_objects:
            raise ValueError(self._objects(key))
        return frame_shape(self._root, f"data/{key}", name, told.shape[1:], told.dtype or np.dtype(object))

    def _objects(self, key: str) -> str:
        return (f"{self._held.place('data/' + key)}/.zarray: is an array of objects, expected numbers; nothing is unpickled. "
                f"Leave it out: "
                f"--names {key}=")  # fmt: skip

    def _check_ends(self, told_E: np.ndarray) -> np.ndarray:
        """Where episodes end, `[E]` int64. Raises ValueError for all but whole numbers that rise to the last frame."""
        used = [key for keys in self._keys.values() for key in keys]
        lengths = [self._told[key].shape[0] if self._told[key].shape else 0 for key in used]
        frames = max(set(lengths), key=lengths.count)
        is_whole = told_E.ndim == 1 and told_E.dtype.kind in "iuf" and bool((told_E == np.round(told_E)).all())
        ends_E = told_E.astype(np.int64) if is_whole else np.zeros(0, np.int64)
        if not len(ends_E) or (np.diff(ends_E, prepend=0) <= 0).any() or ends_E[-1] not in lengths:
            told = f"{told_E.reshape(-1)[:6].tolist()} .. {told_E.reshape(-1)[-1:].tolist()}"
            raise ValueError(f"{self._root}: {ENDS} is {told}, expected a row of rising numbers that ends at {frames}, the "
                             "frames of data")  # fmt: skip
        return ends_E

    def _has_stamps(self, frames: int) -> bool:
        told = self._told.get(STAMPS)
        if told is None or told.dtype is None or told.dtype.kind not in "fiu":
            return False
        return told.shape in ((frames,), (frames, 1))

    def look(self, feature: str) -> str:
        if feature == ACTION and self._next:
            return "as recorded"
        said = []
        for key in self._each[feature]:
            count = self._told[key].shape[0] if self._told[key].shape else 0
            if count != len(self):
                raise ValueError(f"{self._root}: data/{key} has {count} frames, expected {len(self)}, as {ENDS} says; copy "
                                 f"the data "
                                 f"again, or leave it out: --names {key}=")  # fmt: skip
            self._held.check_places(f"data/{key}")
            self._check_chunks(key, self._array(key))
            if is_judged(feature):
                frames = looked_at(self._ends)
                if self._told[key].dtype == np.uint8:
                    frames = frames[:: max(len(frames) // 8, 1)]
                stored = [self._stored(key, np.array([frame]))[0] for frame in frames.tolist()]
                self._judged[key] = judge(self._root, f"data/{key}", feature, frames.tolist(), stored)
                said.append(self._judged[key].said)
        return "; ".join(dict.fromkeys(said)) or "as recorded"

    def _array(self, key: str) -> Any:
        """An array, opened when it is first needed."""
        if key not in self._opened:
            codecs = self._told[key].codecs
            if any(each.startswith("imagecodecs_") for each in codecs):  # registered by that package, where it is installed
                with contextlib.suppress(ImportError):
                    importlib.import_module("imagecodecs.numcodecs").register_codecs()
            try:
                self._opened[key] = self._group[f"data/{key}"]
            except Exception as error:
                install = '; pip install imagecodecs' if any(each.startswith("imagecodecs_") for each in codecs) else ""
                raise ValueError(f"{self._root}: data/{key} is packed with {', '.join(codecs) or 'nothing'}, which cannot be "
                                 f"unpacked here "
                                 f"({_said(error)}){install or '; install that codec'}, or leave it out: --names "
                                 f"{key}=") from error
        return self._opened[key]

    def _check_chunks(self, key: str, array: Any) -> None:
        """A chunk that is not there reads as zeros, in silence."""
        sizes = getattr(array, "shards", None) or array.chunks
        grid = [-(-length // size) for length, size in zip(array.shape, sizes, strict=True)]
        missing = 0, ""
        for at in np.ndindex(*grid):
            name = f"data/{key}/{array.metadata.encode_chunk_key(at)}"
            if name not in self._held.names:
                missing = missing[0] + 1, missing[1] or name
        if missing[0]:
            raise ValueError(f"{self._root}: {missing[0]} of {int(np.prod(grid))} chunks of data/{key} are missing, the first "
                             f"is {missing[1]}; they would read as zeros. Copy the data again (or, if zeros are meant, write "
                             "it with write_empty_chunks)")  # fmt: skip

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        parts = []
        for key, shape in self._each[feature].items():
            stored, unit = self._stored(key, frames_M), self._judged.get(key, AS_IT_IS)
            parts.append(in_our_units(feature, stored, shape, unit, f"{self._root}: data/{key}", cast=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        if not self._next:
            return self.frames(ACTION, frames_M)
        last_M = self._ends[self.episode_index(frames_M)] - 1
        after_M, back = np.unique(np.minimum(frames_M + 1, last_M), return_inverse=True)
        return self.frames(STATE, after_M)[back]

    def files(self) -> tuple[list[Path], list[Path]]:
        if self._root.is_file():
            return [], [self._root]
        keys = [key for name in self.features for key in self._keys[name]]
        used = tuple(f"data/{key}/" for key in keys) + (f"{ENDS}/",)
        metadata = {name for name in self._held.names if name.rpartition("/")[2] in (".zarray", "zarr.json", ".zgroup")
                    and (name.startswith(used) or "/" not in name)}  # fmt: skip
        data = {name for name in self._held.names if name.startswith(used)} - metadata
        return sorted(map(self._held.place, metadata)), sorted(map(self._held.place, data))

    def _stored(self, key: str, frames: np.ndarray | slice) -> np.ndarray:
        if isinstance(frames, np.ndarray) and len(frames) and frames[-1] - frames[0] == len(frames) - 1:
            frames = slice(int(frames[0]), int(frames[-1]) + 1)
        array = self._array(key)
        try:
            return np.asarray(array[frames] if isinstance(frames, slice) else array.oindex[frames])
        except Exception as error:  # of the library's many kinds
            if not self._root.is_file():
                for name in self._held.names:
                    if name.startswith(f"data/{key}/"):
                        refuse_pointer(self._held.place(name))
            raise ValueError(f"{self._root}: data/{key} cannot be read in frames {_shown(frames)}: {_said(error)}") from error


def _why_left_out(told: ArrayTold) -> str:
    if told.is_objects:
        return "objects"
    return "" if told.dtype is not None and told.dtype.kind in "fiub" else "no numbers"


def _shown(frames: np.ndarray | slice) -> str:
    if isinstance(frames, slice):
        return f"{frames.start or 0} .. {frames.stop}"
    return f"{frames[:1].tolist()} .. {frames[-1:].tolist()}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _defaults(keys: list[str]) -> dict[str, str]:
    """What the keys of the known layouts are."""
    found = {ACTION: ACTION, "img": f"{IMAGES}.front", "image": f"{IMAGES}.front", "depth": f"{DEPTH}.front"}
    found |= {key: f"{IMAGES}.{key.removesuffix('_rgb')}" for key in keys if key.startswith("camera")}
    found |= {"point_cloud": POINTS, CLOUD: POINTS}
    state = next((key for key in STATES if key in keys), "")
    return {key: name for key, name in {**found, **({state: STATE} if state else {})}.items() if key in keys}
