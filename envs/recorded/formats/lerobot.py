"""LeRobot data sets of format v2.0, v2.1 and v3.0: numbers from parquet files, images from parquet or video, streamed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.formats.lerobot_meta import Footage, is_number, read_meta, why_left_out
from envs.recorded.formats.lerobot_rows import Tables, find_rows, flat
from envs.recorded.formats.videos import Videos
from envs.recorded.keys import flat_names, frame_shape, in_our_units, join, named, optional
from envs.recorded.observations import RecordedObservations
from envs.recorded.sources import lies_within, refuse_pointer
from envs.recorded.timing import OFF_GRID, Clock, nearest
from envs.recorded.units import AS_IT_IS, Unit, is_judged, judge, looked_at
from envs.specs import ACTION, IMAGES, STATE

KEPT = 256
"""A column of up to so many numbers in a row is kept in memory once it was read."""
OPENING_BYTES = 2 << 30
"""Videos of so many bytes are looked over when the data is opened, further ones when they are first read."""


class LeRobotRecording(RecordedObservations):
    """A data set's folder, as LeRobot writes it. Read by pyarrow and PyAV, without LeRobot."""

    def __init__(self, path: Path, names: Mapping[str, str], dt_s: float = 0.0) -> None:
        """ImportError without pyarrow; ValueError for what is malformed (docs/data.md). dt_s: instead of the time stamps."""
        parquet = optional("pyarrow.parquet", path)
        self._root, self._meta, self._tables = path, read_meta(path, parquet), Tables(parquet)
        meta = self._meta
        why = {key: why_left_out(key, told) for key, told in meta.features.items()}
        known = [key for key in meta.features if not why[key]]
        self._keys = named(path, meta.features, _defaults(known), names)
        self._each = {name: {key: self._shape(name, key) for key in keys} for name, keys in self._keys.items()}
        shapes = {name: join(list(each.values())) for name, each in self._each.items()}
        self._rows = rows = find_rows(path, meta, self._tables)
        if dt_s or rows.stamp_F is None:
            clock, notes = Clock.even(rows.lengths, dt_s or 1 / meta.fps), list[str]()
            self._stamp_F = np.concatenate([np.arange(length) for length in rows.lengths]) * (dt_s or 1 / meta.fps)
        else:
            clock, notes = Clock.read(path, rows.lengths, rows.stamp_F, 1 / meta.fps)
            self._stamp_F = rows.stamp_F
        self._decoders: dict[str, Videos] = {}
        self._aligned: set[tuple[str, Path]] = set()
        self._kept: dict[str, np.ndarray] = {}
        self._judged: dict[str, Unit] = {}
        used = {key for keys in self._keys.values() for key in keys}
        left = {key: why[key] or ("by names" if names.get(key) == "" else "no observation")
                for key in meta.features if key not in used and why[key] != "counts frames"}  # fmt: skip
        size = shapes.pop(ACTION, (0,))[0]
        super().__init__(
            path, shapes, rows.lengths, action_size=size, state_names=self._names_of(STATE),
            action_names=self._names_of(ACTION), clock=clock, parts=self._keys, left_out=left, notes=[*rows.notes, *notes],
        )  # fmt: skip

    def _shape(self, name: str, key: str) -> tuple[int, ...]:
        told = self._meta.features[key]
        pictures = told["dtype"] in ("video", "image")
        if not pictures and not is_number(str(told["dtype"])):
            raise ValueError(f"{self._root}: {key} has dtype {told['dtype']!r}, expected numbers, image or video to be {name}")
        return frame_shape(self._root, key, name, told["shape"], np.dtype(np.uint8 if pictures else told["dtype"]))

    def _names_of(self, name: str) -> list[str]:
        """What the numbers of the state or the action are called; () where the data does not say it of each."""
        found: list[str] = []
        for key, shape in self._each.get(name, {}).items():
            names = flat_names(self._meta.features[key].get("names"))
            if len(names) != shape[0] and len(self._each[name]) == 1:
                return []
            found += names if len(names) == shape[0] else [f"{key.rpartition('.')[2]}_{each}" for each in range(shape[0])]
        return found

    # -- what is refused when it is first needed -------------------------------------------------------------------

    def look(self, feature: str) -> str:
        said = []
        for key, shape in self._each[feature].items():
            kind = self._meta.features[key]["dtype"]
            if kind == "video":
                self._look_at_videos(key)
                said.append("8 bits, divided by 255")
            elif kind == "image":
                self._cells(key, np.zeros(1, np.int64))
                said.append("8 bits, divided by 255")
            elif is_judged(feature):
                frames = looked_at(self._ends).tolist()
                stored = [self._numbers(key, shape, np.array([frame]))[0] for frame in frames]
                self._judged[key] = judge(self._root, key, feature, frames, stored)
                said.append(self._judged[key].said)
            else:
                self._numbers(key, shape, np.zeros(1, np.int64))
        return "; ".join(dict.fromkeys(said)) or "as recorded"

    def _look_at_videos(self, key: str) -> None:
        self._videos()  # which tells that PyAV is not installed
        size, files = 0, dict.fromkeys(self._footage(number, key).file for number in self._rows.numbers)
        for file in files:
            refuse_pointer(file)
            if not file.exists():
                raise ValueError(f"{file}: cannot be opened as a video, it is missing; copy it, or leave it out: --names "
                                 f"{key}=")
            size += file.stat().st_size
            if size <= OPENING_BYTES:
                self._align(key, file)

    def _videos(self) -> Videos:
        if "" not in self._decoders:
            self._decoders[""] = Videos(self._root)
        return self._decoders[""]

    def _footage(self, number: int, key: str) -> Footage:
        told = self._meta.episodes.get(number)
        if told is None or key not in told.videos:
            raise ValueError(f"{self._root}: meta/episodes does not say where {key} of episode {number} lies; leave that "
                             f"camera out: "
                             f"--names {key}=")  # fmt: skip
        return told.videos[key]

    def _align(self, key: str, file: Path) -> None:
        """Raise ValueError where a frame of any episode in this file has no image of its time, within `OFF_GRID` frames."""
        if (key, file) in self._aligned:
            return
        shown, period = self._videos().times(file), 1 / self._meta.fps if self.clock.dt_s is None else self._period()
        out = f"leave that camera out: --names {key}=, or repair the data set with LeRobot"
        spans: list[tuple[float, float, int]] = []
        for place, number in enumerate(self._rows.numbers):
            footage = self._footage(number, key)
            if footage.file != file:
                continue
            wanted = footage.begin_s + self._stamp_F[self._ends[place] - self.episodes[place] : self._ends[place]]
            if not len(shown) or wanted[-1] > shown[-1] + 0.5 * period:
                ends = f"{shown[-1]:.3f} s" if len(shown) else "0 s"
                raise ValueError(f"{file}: the video ends early, at {ends} with {len(shown)} frames; episode {number} needs "
                                 f"one at "
                                 f"{wanted[-1]:.3f} s; {out}")  # fmt: skip
            off = np.abs(shown[nearest(shown, wanted)] - wanted) / period
            if off.max() > OFF_GRID:
                raise ValueError(f"{file}: episode {number}: images lie up to {off.max():.2f} frames "
                                 f"({off.max() * period:.4f} s) beside the "
                                 f"time stamps, at step {int(off.argmax())}, expected within {OFF_GRID}; {out}")  # fmt: skip
            over = 0.0 if footage.end_s is None else (wanted[-1] + period - footage.end_s) / period
            if over > OFF_GRID:
                raise ValueError(f"{file}: episode {number} begins at {footage.begin_s:.3f} s and ends at {footage.end_s:.3f} "
                                 f"s by "
                                 f"meta/episodes, its {self.episodes[place]} rows reach {over:.2f} frames beyond; "
                                 f"{out}")  # fmt: skip
            spans.append((float(wanted[0]), float(wanted[-1]), number))
        spans.sort()
        for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
            if begin < end + (1 - OFF_GRID) * period:
                raise ValueError(f"{file}: episodes {first} and {second} overlap by {(end - begin) / period + 1:.2f} frames "
                                 f"in the video; "
                                 f"{out}")  # fmt: skip
        self._aligned.add((key, file))

    def _period(self) -> float:
        steps = [self._stamp_F[end - length : end] for end, length in zip(self._ends, self.episodes, strict=True)]
        apart = np.concatenate([np.diff(each) for each in steps]) if steps else np.zeros(0)
        return float(np.median(apart)) if len(apart) else 1 / self._meta.fps

    # -- reading ---------------------------------------------------------------------------------------------------

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        parts = []
        for key, shape in self._each[feature].items():
            kind = self._meta.features[key]["dtype"]
            unit = self._judged.get(key, AS_IT_IS)
            if kind == "video":
                stored = self._footage_at(key, frames_M)
            elif kind == "image":
                stored = self._cells(key, frames_M)
            else:
                stored = self._numbers(key, shape, frames_M)
            unit = Unit(255.0) if kind in ("video", "image") else unit
            parts.append(in_our_units(feature, stored, shape, unit, f"{self._root}: {key}", cast=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return self.frames(ACTION, frames_M)

    def instructions(self, indices: Any) -> list[str]:
        frames_n = self._checked(indices)
        if self._rows.task_F is None:
            return [""] * len(frames_n)
        tasks = self._meta.tasks
        return [tasks.get(int(each), f"task {each}" if tasks else "") for each in self._rows.task_F[frames_n]]

    def _footage_at(self, key: str, frames_M: np.ndarray) -> np.ndarray:
        episode_M, parts = self.episode_index(frames_M), []
        for place in np.unique(episode_M).tolist():
            footage = self._footage(self._rows.numbers[place], key)
            self._align(key, footage.file)
            wanted = footage.begin_s + self._stamp_F[frames_M[episode_M == place]]
            parts.append(self._pictures(self._videos().read(footage.file, wanted), key, footage.file))
        height, width = self._size(key)
        return np.concatenate(parts) if parts else np.zeros((0, height, width, 3), np.uint8)

    def _numbers(self, key: str, shape: tuple[int, ...], frames_M: np.ndarray) -> np.ndarray:
        """A column of numbers in M frames, `[M, *stored shape]`."""
        stored = tuple(int(size) for size in self._meta.features[key]["shape"]) or (1,)
        rows, tables = self._rows, self._tables
        if np.prod(stored) > KEPT:
            found = np.zeros((len(frames_M), *stored), np.float32)
            for number in np.unique(rows.file_F[frames_M]).tolist():
                mine = rows.file_F[frames_M] == number
                cells = tables.cells(rows.files[number], key, rows.row_F[frames_M[mine]])
                try:
                    found[mine] = np.asarray(cells, dtype=np.float64).reshape(-1, *stored)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{rows.files[number]}: {key} is not {list(stored)} numbers in each row") from error
            return found
        if key not in self._kept:
            parts = [flat(tables.column(file, key), stored, key, file) for file in rows.files]
            every = np.concatenate(parts)
            begins = np.cumsum([0, *(len(each) for each in parts)])
            self._kept[key] = every[begins[rows.file_F] + rows.row_F]
        return self._kept[key][frames_M]

    def _cells(self, key: str, frames_M: np.ndarray) -> np.ndarray:
        """Images that lie in a column, `[M, H, W, 3]` uint8."""
        found: dict[int, np.ndarray] = {}
        for number in np.unique(self._rows.file_F[frames_M]).tolist():
            file, mine = self._rows.files[number], frames_M[self._rows.file_F[frames_M] == number]
            cells = self._tables.cells(file, key, self._rows.row_F[mine])
            images = self._pictures(np.stack([self._decoded(cell, key, file) for cell in cells]), key, file)
            found |= dict(zip(mine.tolist(), images, strict=True))
        height, width = self._size(key)
        return np.stack([found[frame] for frame in frames_M.tolist()]) if found else np.zeros((0, height, width, 3), np.uint8)

    def _decoded(self, cell: Any, key: str, file: Path) -> np.ndarray:
        from PIL import Image

        data = cell.get("bytes") if isinstance(cell, dict) else None
        try:
            if data is None:  # beside the parquet file, under a path within the data set
                inside = self._root / str(cell["path"])
                if not lies_within(self._root, inside):
                    raise ValueError(f"{cell['path']} lies outside of the data set")
                refuse_pointer(inside)
                data = inside.read_bytes()
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits ({image.mode}), expected a colour image; leave it out: --names "
                                     f"{key}=")
                return np.asarray(image.convert("RGB"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: an image of {key} cannot be read: {' '.join(str(error).split())}") from error

    def _size(self, key: str) -> tuple[int, int]:
        shape = [int(size) for size in self._meta.features[key]["shape"]]
        height, width = shape[:2] if shape[-1] == 3 else shape[1:]
        return height, width

    def _pictures(self, images: np.ndarray, key: str, file: Path) -> np.ndarray:
        if images.shape[1:] != (*self._size(key), 3):
            raise ValueError(f"{file}: images of {key} are {images.shape[1:]}, meta/info.json says "
                             f"{tuple(self._meta.features[key]['shape'])}")  # fmt: skip
        return images

    def files(self) -> tuple[list[Path], list[Path]]:
        used = set(self._rows.files)
        for name in self.features:
            for key in self._keys[name]:
                if self._meta.features[key]["dtype"] == "video":
                    used |= {self._footage(number, key).file for number in self._rows.numbers}
        return sorted(path for path in (self._root / "meta").rglob("*") if path.is_file()), sorted(used)


def _defaults(keys: list[str]) -> dict[str, str]:
    """LeRobot's names are ours, but for a lone camera without a name."""
    found = {key: key for key in keys if key == ACTION or key.startswith("observation.")}
    return {**found, **({"observation.image": f"{IMAGES}.front"} if "observation.image" in keys else {})}
