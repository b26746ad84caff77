"""Replay buffers in zarr, of Diffusion Policy, 3D Diffusion Policy and PointFlowMatch: ``data/*`` and ``meta/episode_ends``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import ACTION, frame_shape, in_our_units, is_bright, named, optional
from envs.recorded.observations import RecordedObservations
from envs.specs import DEPTH, IMAGES, POINTS, STATE

STATES = ("state", "robot_state", "agent_pos", "robot_eef_pose")
"""The first of these that is there is the state, unless `names` says otherwise."""
NEXT_STATE = "robot_state"
"""PointFlowMatch stores no actions: what it learns to predict are the states that come next."""
CLOUD, COLOURS = "pcd_xyz", "pcd_color"
ENDS = "meta/episode_ends"
ROWS = 4096
"""Frames that are looked at together when numbers are searched for NaN."""


class ZarrRecording(RecordedObservations):
    """A group in zarr format 2 or 3, a folder or a zip, read by the zarr library chunk by chunk."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        """ImportError without zarr; ValueError for what is malformed: see docs/recorded.md."""
        zarr = optional("zarr", "zarr", path)
        self._root = path
        self._refuse_objects()
        try:
            store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path, read_only=True)
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            arrays = {key: group[f"data/{key}"] for key in group["data"].array_keys()}
            told_E = np.asarray(group[ENDS][:])
        except Exception as error:  # of the library's many kinds: whatever it is, the data cannot be read
            raise ValueError(f"{path}: cannot be read as a replay buffer with data/* and {ENDS}: {_said(error)}") from error
        self._keys = named(path, arrays, _defaults(list(arrays)), names)
        self._arrays = {key: arrays[key] for keys in self._keys.values() for key in keys}
        if self._keys.get(POINTS) == (CLOUD,) and COLOURS in arrays and names.get(COLOURS) != "":
            self._keys[POINTS] = (CLOUD, COLOURS)
            self._arrays[COLOURS] = arrays[COLOURS]
        self._next = ACTION not in self._keys and self._keys.get(STATE) == (NEXT_STATE,)
        ends_E = self._check_ends(told_E)
        for key, array in self._arrays.items():
            self._check_chunks(key, array)
        self._each = {
            name: {key: frame_shape(path, f"data/{key}", name,
                                    self._arrays[key].shape[1:], self._arrays[key].dtype) for key in keys}
            for name, keys in self._keys.items()
        }  # fmt: skip
        shapes = {name: _joined(list(each.values())) for name, each in self._each.items()}
        self._bright = {key for name, keys in self._keys.items() for key in keys
                        if is_bright(name, self._stored(key, slice(0, 1)))}  # fmt: skip
        size = shapes.pop(ACTION, shapes.get(STATE, (0,)) if self._next else (0,))[0]
        super().__init__(path, shapes, np.diff(ends_E, prepend=0).tolist(), action_size=size)
        self._check_numbers()

    # -- what is refused when it is opened -------------------------------------------------------------------------

    def _refuse_objects(self) -> None:
        """Arrays of objects are pickles: they are refused by their metadata, before a library looks at them."""
        for name in self._files:
            if name.rsplit("/", 1)[-1] in (".zarray", "zarr.json"):
                try:
                    told = json.loads(self._bytes(name))
                except ValueError as error:
                    raise ValueError(f"{self._root / name}: is no JSON ({error}); the data was not written whole") from error
                coded = json.dumps([told.get(part) for part in ("dtype", "data_type", "filters", "compressor", "codecs")])
                if '"|O"' in coded or '"pickle"' in coded or "json2" in coded:
                    raise ValueError(f"{self._root / name}: is an array of objects, expected numbers; nothing is unpickled")

    def _check_ends(self, told_E: np.ndarray) -> np.ndarray:
        """Where episodes end, `[E]` int64. Raises ValueError for all but whole numbers that rise to the last frame."""
        lengths = {key: array.shape[0] if array.ndim else 0 for key, array in self._arrays.items()}
        frames = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self._root}: the arrays of data have {lengths} frames, expected as many in each")
        is_whole = told_E.ndim == 1 and told_E.dtype.kind in "iuf" and bool((told_E == np.round(told_E)).all())
        ends_E = told_E.astype(np.int64) if is_whole else np.zeros(0, np.int64)
        if not len(ends_E) or (np.diff(ends_E, prepend=0) <= 0).any() or ends_E[-1] != frames:
            told = f"{told_E.reshape(-1)[:6].tolist()} .. {told_E.reshape(-1)[-1:].tolist()}"
            raise ValueError(f"{self._root}: {ENDS} is {told}, expected a row of rising numbers that ends at {frames}, the "
                             "frames of data")  # fmt: skip
        return ends_E

    def _check_chunks(self, key: str, array: Any) -> None:
        """A chunk that is not there reads as zeros, in silence."""
        sizes = getattr(array, "shards", None) or array.chunks
        grid = [-(-length // size) for length, size in zip(array.shape, sizes, strict=True)]
        missing = 0, ""
        for at in np.ndindex(*grid):
            name = f"data/{key}/{array.metadata.encode_chunk_key(at)}"
            if name not in self._files:
                missing = missing[0] + 1, missing[1] or name
        if missing[0]:
            raise ValueError(f"{self._root}: {missing[0]} of {int(np.prod(grid))} chunks of data/{key} are missing, the first "
                             f"is {missing[1]}; they would read as zeros. Copy the data again (or, if zeros are meant, write "
                             "it with write_empty_chunks)")  # fmt: skip

    def _check_numbers(self) -> None:
        """Every number of states and actions; images and clouds are looked at as they are read."""
        for name in (STATE, ACTION):
            for begin in range(0, len(self) if name in self._keys else 0, ROWS):
                frames_M = np.arange(begin, min(begin + ROWS, len(self)))
                shape = (self.action_size,) if name == ACTION else self.features[STATE]
                self._finite(name, self._read(name, frames_M), frames_M, shape)

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        return self._read(feature, frames_M)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        if not self._next:
            return self._read(ACTION, frames_M)
        last_M = self._ends[self.episode_index(frames_M)] - 1
        after_M, back = np.unique(np.minimum(frames_M + 1, last_M), return_inverse=True)
        return self._read(STATE, after_M)[back]

    def files(self) -> tuple[list[Path], list[Path]]:
        if self._root.is_file():
            return [], [self._root]
        used = [f"data/{key}/" for key in self._arrays] + [f"{ENDS}/"]
        metadata = [self._root / name for name in self._files if name.rsplit("/", 1)[-1] in (".zarray", "zarr.json", ".zgroup")]
        data = [self._root / name for name in self._files if name.startswith(tuple(used))]
        return sorted(metadata), sorted(set(data) - set(metadata))

    def _read(self, name: str, frames_M: np.ndarray) -> np.ndarray:
        parts = []
        for key, shape in self._each[name].items():
            stored = self._stored(key, frames_M)
            part = in_our_units(name, stored, shape, key in self._bright)
            parts.append(part / np.float32(255) if key == COLOURS and stored.dtype.kind in "iu" else part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _stored(self, key: str, frames: np.ndarray | slice) -> np.ndarray:
        if isinstance(frames, np.ndarray) and len(frames) and frames[-1] - frames[0] == len(frames) - 1:
            frames = slice(int(frames[0]), int(frames[-1]) + 1)
        try:
            array = self._arrays[key]
            return np.asarray(array[frames] if isinstance(frames, slice) else array.oindex[frames])
        except Exception as error:  # see above
            raise ValueError(f"{self._root}: data/{key} cannot be read in frames {frames}: {_said(error)}") from error

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(self._walk())

    def _walk(self) -> Iterator[str]:
        if not self._root.is_file():
            yield from (path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file())
            return
        try:
            with zipfile.ZipFile(self._root) as archive:
                yield from archive.namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self._root}: is no whole zip file ({error}); copy it again") from error

    def _bytes(self, name: str) -> bytes:
        if not self._root.is_file():
            return (self._root / name).read_bytes()
        with zipfile.ZipFile(self._root) as archive:
            return archive.read(name)


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return shapes[0] if len(shapes) == 1 else (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _defaults(keys: list[str]) -> dict[str, str]:
    """What the keys of the known layouts are."""
    found = {ACTION: ACTION, "img": f"{IMAGES}.front", "image": f"{IMAGES}.front", "depth": f"{DEPTH}.front"}
    found |= {key: f"{IMAGES}.{key.removesuffix('_rgb')}" for key in keys if key.startswith("camera")}
    found |= {"point_cloud": POINTS, CLOUD: POINTS}
    state = next((key for key in STATES if key in keys), "")
    return {**found, **({state: STATE} if state else {})}
