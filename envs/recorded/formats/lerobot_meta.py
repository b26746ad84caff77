"""What a LeRobot data set says of itself in ``meta/``, formats v2.0, v2.1 and v3.0: features, lengths, where videos lie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.sources import lies_within, read_text, refuse_outside, refuse_pointer

VERSIONS = ("v2.0", "v2.1", "v3.0")
STANDARD = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.done", "next.reward", "next.success")
"""Columns that count and mark frames; they are no observations unless `names` says so."""


PATTERN = re.compile(r"(?:[^{}]|\{[a-z_]+(?::\d{1,2}d)?\})*")
"""Of the paths of files in ``info.json``: a width of billions would fill the memory, an attribute would be looked up."""


@dataclass(frozen=True)
class Footage:
    """Where an episode's video lies: the file, and from when to when in it [s]; end_s: None where it is not told."""

    file: Path
    begin_s: float
    end_s: float | None


@dataclass(frozen=True)
class Told:
    """What is told of an episode: its frames, its parquet file, and by key of dtype video its footage."""

    length: int
    data: Path
    videos: dict[str, Footage]


@dataclass(frozen=True)
class Meta:
    """features: as ``info.json`` tells them, each with dtype, shape and names; tasks: index to what the robot was told.

    episodes: by number, {} where the list of them is missing; totals: of ``info.json``.
    """

    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: dict[int, Told]
    tasks: dict[int, str]
    data_path: str
    totals: dict[str, int] = field(default_factory=dict)


def read_meta(path: Path, parquet: Any) -> Meta:
    """Raises ValueError for what is missing, of another version, or does not fit, with the file's name."""
    info = _info(path)
    version = str(info["codebase_version"])
    is_third = version.startswith("v3")
    episodes = (_episodes_v3 if is_third else _episodes_v2)(path, info, parquet)
    tasks = _tasks_v3(path, parquet) if is_third else _tasks_v2(path)
    totals = {name: int(info[name]) for name in ("total_episodes", "total_frames") if isinstance(info.get(name), int)}
    return Meta(version, float(info["fps"]), dict(info["features"]), episodes, tasks, str(info["data_path"]), totals)


def is_depth(told: Any) -> bool:
    """Whether a feature is marked as a depth map, in any of the places in which LeRobot's versions put that mark."""
    if not isinstance(told, dict):
        return False
    return any(bool(value) if str(key).rpartition(".")[2] == "is_depth_map" else is_depth(value) for key, value in told.items())


def is_number(kind: str) -> bool:
    """Whether a column of this dtype holds numbers or truth values."""
    try:
        return np.dtype(kind).kind in "fiub"
    except TypeError:
        return False


def why_left_out(key: str, told: Mapping[str, Any]) -> str:
    """Why a feature is not read by itself, "" for one that is."""
    if key in STANDARD:
        return "counts frames"
    if is_depth(told):
        return "depth in a video or picture"
    if told["dtype"] not in ("video", "image") and not is_number(str(told["dtype"])):
        return f"of {told['dtype']}"
    return ""


def _info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    try:
        info = json.loads(read_text(path, file))
        version, fps, features = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
        info["data_path"].format, (info.get("video_path") or "").format
        for each in features.values():
            str(each["dtype"]), [int(size) for size in each["shape"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: is not LeRobot's: {type(error).__name__}: {error}") from error
    if version not in VERSIONS:
        raise ValueError(f"{file}: codebase_version is {version!r}, expected one of {list(VERSIONS)}; convert it with LeRobot")
    if not fps > 0:
        raise ValueError(f"{file}: fps is {fps}, expected a number above 0")
    return dict(info)


def place(path: Path, pattern: str, where: Mapping[str, Any]) -> Path:
    """A file of the data set. ValueError for a pattern that leads out of it, or that holds more than names and widths."""
    try:
        if not PATTERN.fullmatch(pattern):
            raise ValueError("expected names of numbers with a width of two digits at most")
        found = path / pattern.format(**where)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: meta/info.json names its files {pattern!r}, which does not fit {dict(where)}") from error
    if not lies_within(path, found):
        raise ValueError(f"{path}: meta/info.json names a file outside of the data set, {found}")
    return found


def _videos(info: Mapping[str, Any]) -> list[str]:
    return [key for key, told in info["features"].items() if told["dtype"] == "video"]


# -- v2: a file per episode, lists of JSON lines -----------------------------------------------------------------------


def _lines(path: Path, file: Path) -> list[dict[str, Any]]:
    text = read_text(path, file)
    try:
        return [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error


def _episodes_v2(path: Path, info: Mapping[str, Any], parquet: Any) -> dict[int, Told]:
    file, found = path / "meta" / "episodes.jsonl", {}
    try:
        told = _lines(path, file) if file.exists() else []
        lines = sorted((int(each["episode_index"]), int(each["length"])) for each in told)
        size = int(info.get("chunks_size") or 1000)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeyError):
            raise ValueError(f"{file}: lacks {error}; expected episode_index and length in each line") from error
        raise
    for number, length in lines:
        where = {"episode_chunk": number // size, "episode_index": number}
        videos = {key: Footage(place(path, str(info.get("video_path")), {**where, "video_key": key}), 0.0, None)
                  for key in _videos(info)}  # fmt: skip
        found[number] = Told(length, place(path, info["data_path"], where), videos)
    return found


def _tasks_v2(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.jsonl"
    try:
        return {int(each["task_index"]): str(each["task"]) for each in _lines(path, file)} if file.exists() else {}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: lacks {error}; expected task_index and task in each line") from error


# -- v3: many episodes in a file, lists in parquet ---------------------------------------------------------------------


def _episodes_v3(path: Path, info: Mapping[str, Any], parquet: Any) -> dict[int, Told]:
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    keys = _videos(info)
    for key in keys:
        needed += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        refuse_pointer(file)
        refuse_outside(path, file)
        try:
            opened = parquet.ParquetFile(file)
            ends = [f"videos/{key}/to_timestamp" for key in keys]
            rows += opened.read(columns=[name for name in (*needed, *ends) if name in opened.schema_arrow.names]).to_pylist()
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: cannot be read as a list of episodes: {error}") from error
    found: dict[int, Told] = {}
    for row in rows:
        lacking = [name for name in needed[:4] if row.get(name) is None]
        if lacking:
            raise ValueError(f"{path}: meta/episodes lacks {lacking} of episode {row.get('episode_index')}")
        data = place(path, info["data_path"], {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]})
        videos = {}
        for key in keys:
            where = {part: row.get(f"videos/{key}/{part}") for part in ("chunk_index", "file_index", "from_timestamp")}
            if None in where.values():
                continue  # told when that video is needed
            begin_s, end_s = float(where.pop("from_timestamp") or 0.0), row.get(f"videos/{key}/to_timestamp")
            videos[key] = Footage(place(path, str(info.get("video_path")), {**where, "video_key": key}), begin_s,
                                  None if end_s is None else float(end_s))  # fmt: skip
        if int(row["episode_index"]) in found:
            raise ValueError(f"{path}: meta/episodes lists episode {row['episode_index']} twice; the data was not merged whole")
        found[int(row["episode_index"])] = Told(int(row["length"]), data, videos)
    return found


def _tasks_v3(path: Path, parquet: Any) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    if not file.exists():
        return {}
    refuse_pointer(file)
    refuse_outside(path, file)
    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    texts = next((name for name in table.column_names if name != "task_index"), "")  # pandas' index, by whatever name
    if not texts or "task_index" not in table.column_names:
        return {}
    return dict(zip(map(int, table["task_index"].to_pylist()), map(str, table[texts].to_pylist()), strict=True))
