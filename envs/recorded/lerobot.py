"""LeRobot data sets of format v2.1 and v3.0: numbers from parquet files, images from parquet or video, streamed."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import ACTION, frame_shape, in_our_units, named, optional
from envs.recorded.lerobot_meta import Episode, read_meta
from envs.recorded.observations import RecordedObservations
from envs.recorded.videos import Videos
from envs.specs import IMAGES, STATE

EXTRA = "lerobot-data"
ROW_GROUPS = 8
"""Row groups of parquet files that stay in memory, numbers and compressed images."""
TOLERANCE = 0.5
"""How far from its time a video's frame may lie, in frames."""


@dataclass(frozen=True)
class _Rows:
    """Where the row groups of a parquet file begin, `[G + 1]`."""

    file: Any
    begins: np.ndarray


class LeRobotRecording(RecordedObservations):
    """A data set's folder, as LeRobot writes it. Read by pyarrow and PyAV, without LeRobot."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        """ImportError without pyarrow or, where there are videos, PyAV; ValueError for what is malformed (docs/recorded.md)."""
        self._parquet = optional("pyarrow.parquet", EXTRA, path)
        self._root, self._meta = path, read_meta(path, self._parquet)
        meta = self._meta
        known = {key: told for key, told in meta.features.items() if _is_read(key, told)}
        self._keys = named(path, known, _defaults(list(known)), names)
        self._videos = None
        used = [key for keys in self._keys.values() for key in keys]
        if any(known[key]["dtype"] == "video" for key in used):
            self._videos = Videos(EXTRA, path)
        self._each = {name: {key: self._shape(name, key) for key in keys} for name, keys in self._keys.items()}
        shapes = {name: next(iter(each.values())) for name, each in self._each.items() if len(each) == 1}
        shapes |= {name: (sum(shape[0] for shape in each.values()),) for name, each in self._each.items() if len(each) > 1}
        size = shapes.pop(ACTION, (0,))[0]
        self._opened: OrderedDict[Path, _Rows] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        super().__init__(
            path, shapes, [episode.length for episode in meta.episodes], action_size=size, dt_s=1 / meta.fps,
            state_names=self._names_of(STATE), action_names=self._names_of(ACTION),
        )  # fmt: skip
        self._check_files(used)

    def _shape(self, name: str, key: str) -> tuple[int, ...]:
        told = self._meta.features[key]
        pictures = told["dtype"] in ("video", "image")
        return frame_shape(self._root, key, name, told["shape"], np.dtype(np.uint8 if pictures else told["dtype"]))

    def _names_of(self, name: str) -> list[str]:
        """What the numbers of the state or the action are called; () where the data does not say it of each."""
        found: list[str] = []
        for key, shape in self._each.get(name, {}).items():
            told = self._meta.features[key].get("names")
            told = next(iter(told.values()), None) if isinstance(told, dict) and len(told) == 1 else told
            if not isinstance(told, list) or len(told) != shape[0]:
                return []
            found += map(str, told)
        return found

    # -- what is refused when it is opened -------------------------------------------------------------------------

    def _check_files(self, used: list[str]) -> None:
        """Every file is there, with as many rows and frames as the episodes need; the first rows are as wide as is told."""
        rows: dict[Path, int] = {}
        frames: dict[Path, int] = {}
        for episode in self._meta.episodes:
            rows[episode.data] = max(rows.get(episode.data, 0), episode.row + episode.length)
            for key in used:
                if self._meta.features[key]["dtype"] == "video":
                    file, begin_s = episode.videos[key]
                    frames[file] = max(frames.get(file, 0), round(begin_s * self._meta.fps) + episode.length)
        for file, needed in rows.items():
            there = int(self._rows(file).begins[-1])
            if there < needed:
                raise ValueError(f"{file}: has {there} rows, its episodes need {needed}; the data is cut off or of another set")
        for file, needed in frames.items():
            assert self._videos is not None
            there = self._videos.length(file)
            if 0 < there < needed:
                raise ValueError(f"{file}: the video ends early, it has {there} frames, its episodes need {needed}")
        for key in used:
            if self._meta.features[key]["dtype"] != "video":
                self._column(self._meta.episodes[0], key, np.zeros(1, np.int64))

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        episode_M, parts = self.episode_index(frames_M), []
        for key, shape in self._each[feature].items():
            rows = [np.zeros((0, *shape), np.float32)]
            for number in np.unique(episode_M).tolist():
                episode, first = self._meta.episodes[number], self._ends[number] - self.episodes[number]
                stored = self._stored(episode, key, frames_M[episode_M == number] - first)
                rows.append(in_our_units(feature, stored, shape))
            parts.append(np.concatenate(rows))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return self.frames(ACTION, frames_M)

    def instructions(self, indices: Any) -> list[str]:
        frames_n = self._checked(indices)
        if "task_index" not in self._meta.features:
            return [""] * len(frames_n)
        frames_M, back = np.unique(frames_n, return_inverse=True)
        episode_M, found = self.episode_index(frames_M), []
        for number in np.unique(episode_M).tolist():
            first = self._ends[number] - self.episodes[number]
            told = self._column(self._meta.episodes[number], "task_index", frames_M[episode_M == number] - first)
            found += [self._meta.tasks.get(int(each), "") for each in told.reshape(-1)]
        return [found[each] for each in back.reshape(-1)]

    def _stored(self, episode: Episode, key: str, steps_M: np.ndarray) -> np.ndarray:
        if self._meta.features[key]["dtype"] != "video":
            return self._column(episode, key, steps_M)
        assert self._videos is not None
        file, begin_s = episode.videos[key]
        images = self._videos.read(file, begin_s + steps_M / self._meta.fps, TOLERANCE / self._meta.fps)
        return self._pictures(images, key, file)

    def _column(self, episode: Episode, key: str, steps_M: np.ndarray) -> np.ndarray:
        """What a column holds in M rising steps of an episode, `[M, *shape]`."""
        held, wanted = self._rows(episode.data), episode.row + steps_M
        group_M = np.searchsorted(held.begins, wanted, side="right") - 1
        parts = []
        for group in np.unique(group_M).tolist():
            table = self._group(episode.data, group)
            if key not in table.column_names:
                raise ValueError(f"{episode.data}: has no column {key!r}, which meta/info.json names; got {table.column_names}")
            rows = wanted[group_M == group] - held.begins[group]
            index = table["episode_index"].take(rows).to_pylist() if "episode_index" in table.column_names else []
            if any(int(each) != episode.number for each in index):
                raise ValueError(f"{episode.data}: rows {rows[:3].tolist()} .. are of episode {index[0]}, expected "
                                 f"{episode.number}; meta and data do not fit")  # fmt: skip
            parts.append(self._values(table[key].take(rows).to_pylist(), key, episode.data))
        return np.concatenate(parts)

    def _values(self, cells: list[Any], key: str, file: Path) -> np.ndarray:
        told = self._meta.features[key]
        if told["dtype"] == "image":
            return self._pictures(np.stack([self._decoded(cell, key, file) for cell in cells]), key, file)
        try:
            values = np.asarray(cells, dtype=np.dtype(told["dtype"]))
        except (TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{file}: {key} is not {told['shape']} numbers in each row: {said}") from error
        expected = tuple(told["shape"])
        if values.size != len(cells) * math.prod(expected):
            raise ValueError(f"{file}: {key} is {values.shape[1:]} in each row, meta/info.json says {expected}")
        return values.reshape(len(cells), *expected)

    def _decoded(self, cell: Any, key: str, file: Path) -> np.ndarray:
        from PIL import Image

        data = cell.get("bytes") if isinstance(cell, dict) else None
        try:
            if data is None:  # beside the parquet file, under a path within the data set
                inside = (self._root / str(cell["path"])).resolve()
                if not inside.is_relative_to(self._root.resolve()):
                    raise ValueError(f"{cell['path']} lies outside of the data set")
                data = inside.read_bytes()
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: an image of {key} cannot be read: {' '.join(str(error).split())}") from error

    def _pictures(self, images: np.ndarray, key: str, file: Path) -> np.ndarray:
        shape = tuple(self._meta.features[key]["shape"])
        size = shape[:2] if shape[-1] == 3 else shape[1:]
        if images.shape[1:] != (*size, 3):
            raise ValueError(f"{file}: images of {key} are {images.shape[1:]}, meta/info.json says {shape}")
        return images

    def _rows(self, file: Path) -> _Rows:
        """An open parquet file; the last ones stay open."""
        if file not in self._opened:
            while len(self._opened) >= ROW_GROUPS:
                self._opened.popitem(last=False)[1].file.close()
            try:
                opened = self._parquet.ParquetFile(file, memory_map=True)
                counts = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            except (OSError, ValueError) as error:  # pyarrow's own errors are of these
                raise ValueError(f"{file}: cannot be read as parquet, it is missing or cut off: {error}") from error
            self._opened[file] = _Rows(opened, np.cumsum([0, *counts]))
        self._opened.move_to_end(file)
        return self._opened[file]

    def _group(self, file: Path, group: int) -> Any:
        """The columns that are used of one row group."""
        if (file, group) not in self._groups:
            while len(self._groups) >= ROW_GROUPS:
                self._groups.popitem(last=False)
            held = self._rows(file).file
            wanted = {*(key for each in self._each.values() for key in each), "episode_index", "task_index"}
            try:
                columns = [name for name in held.schema_arrow.names if name in wanted]
                self._groups[file, group] = held.read_row_group(group, columns=columns)
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: row group {group} cannot be read, it is damaged: {error}") from error
        self._groups.move_to_end((file, group))
        return self._groups[file, group]

    def files(self) -> tuple[list[Path], list[Path]]:
        used = {episode.data for episode in self._meta.episodes}
        keys = [key for keys in self._keys.values() for key in keys]
        used |= {episode.videos[key][0] for episode in self._meta.episodes for key in keys if key in episode.videos}
        return sorted(path for path in (self._root / "meta").rglob("*") if path.is_file()), sorted(used)


def _is_read(key: str, told: Mapping[str, Any]) -> bool:
    """Observations and the action; not what only counts frames, and no depth that was squeezed into a video."""
    depth = bool(told.get("info", {}) and told["info"].get("video.is_depth_map")) or bool(told.get("video.is_depth_map"))
    return not depth and told["dtype"] != "string" and key not in (
        "timestamp", "frame_index", "episode_index", "index", "task_index", "next.done", "next.reward", "next.success"
    )  # fmt: skip


def _defaults(keys: list[str]) -> dict[str, str]:
    """LeRobot's names are ours, but for a lone camera without a name."""
    return {**{key: key for key in keys if key == ACTION or key.startswith("observation.")},
            **({"observation.image": f"{IMAGES}.front"} if "observation.image" in keys else {})}  # fmt: skip


