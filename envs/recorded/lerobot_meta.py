"""What a LeRobot data set says of itself in ``meta/``, formats v2.1 and v3.0: features, episodes and where they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Episode:
    """One episode: its number, its frames, its parquet file and the row there at which it begins.

    videos: per key of dtype video the file, and the time [s] in it of the episode's first frame.
    """

    number: int
    length: int
    data: Path
    row: int
    videos: dict[str, tuple[Path, float]]


@dataclass(frozen=True)
class Meta:
    """features: as ``info.json`` tells them, each with dtype, shape and names; tasks: index to what the robot was told."""

    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: tuple[Episode, ...]
    tasks: dict[int, str]


def read_meta(path: Path, parquet: Any) -> Meta:
    """Raises ValueError for what is missing, of another version, or does not fit, with the file's name."""
    info = _info(path)
    version = str(info["codebase_version"])
    read = _episodes_v3 if version.startswith("v3") else _episodes_v2
    episodes = read(path, info, parquet)
    told = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    wrong = {name: info[name] for name, count in told.items() if name in info and info[name] != count}
    if wrong or not episodes:
        raise ValueError(f"{path}: meta/info.json says {wrong or 'that there are none'}, the episodes count {told}; the data "
                         "was not written or copied whole")  # fmt: skip
    tasks = _tasks_v3(path, parquet) if version.startswith("v3") else _tasks_v2(path)
    return Meta(version, float(info["fps"]), dict(info["features"]), tuple(episodes), tasks)


def _info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text())
        version, fps, features = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
        info["data_path"].format, (info.get("video_path") or "").format
        told = {key: (str(each["dtype"]), [int(size) for size in each["shape"]]) for key, each in features.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: is not LeRobot's: {type(error).__name__}: {error}") from error
    if version not in VERSIONS:
        raise ValueError(f"{file}: codebase_version is {version!r}, expected one of {list(VERSIONS)}; convert it with LeRobot")
    if not fps > 0:
        raise ValueError(f"{file}: fps is {fps}, expected a number above 0")
    for key, (kind, _) in told.items():
        if kind not in ("video", "image", "string", "bool") and not _is_number(kind):
            raise ValueError(f"{file}: {key} has dtype {kind!r}, expected numbers, image or video")
    return dict(info)


def _is_number(kind: str) -> bool:
    try:
        return np.dtype(kind).kind in "fiu"
    except TypeError:
        return False


def _place(path: Path, pattern: str, where: Mapping[str, Any]) -> Path:
    """A file of the data set. ValueError for a pattern that leads out of it."""
    try:
        found = path / pattern.format(**where)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: meta/info.json names its files {pattern!r}, which does not fit {dict(where)}") from error
    if not found.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{path}: meta/info.json names a file outside of the data set, {found}")
    return found


def _videos(info: Mapping[str, Any]) -> list[str]:
    return [key for key, told in info["features"].items() if told["dtype"] == "video"]


# -- v2: a file per episode, lists of JSON lines -----------------------------------------------------------------------


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [dict(json.loads(line)) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error


def _episodes_v2(path: Path, info: Mapping[str, Any], parquet: Any) -> list[Episode]:
    file, found = path / "meta" / "episodes.jsonl", []
    try:
        lines = sorted((int(each["episode_index"]), int(each["length"])) for each in _lines(file))
        size = int(info["chunks_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: lacks {error}; expected episode_index and length in each line") from error
    for number, length in lines:
        where = {"episode_chunk": number // size, "episode_index": number}
        videos = {key: (_place(path, info["video_path"], {**where, "video_key": key}), 0.0) for key in _videos(info)}
        found.append(Episode(number, length, _place(path, info["data_path"], where), 0, videos))
    return found


def _tasks_v2(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.jsonl"
    return {int(each["task_index"]): str(each["task"]) for each in _lines(file)} if file.is_file() else {}


# -- v3: many episodes in a file, lists in parquet ---------------------------------------------------------------------


def _episodes_v3(path: Path, info: Mapping[str, Any], parquet: Any) -> list[Episode]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in _videos(info):
        columns += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        try:
            rows += parquet.ParquetFile(file).read(columns=columns).to_pylist()
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: cannot be read as a list of episodes: {error}") from error
    found: list[Episode] = []
    filled: dict[Path, int] = {}
    for row in sorted(rows, key=lambda each: int(each["episode_index"])):
        lacking = [name for name in columns if row.get(name) is None]
        if lacking:
            raise ValueError(f"{path}: meta/episodes lacks {lacking} of episode {row.get('episode_index')}")
        data = _place(path, info["data_path"], {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]})
        videos = {}
        for key in _videos(info):
            where = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
            videos[key] = (_place(path, info["video_path"], {**where, "video_key": key}),
                           float(row[f"videos/{key}/from_timestamp"]))  # fmt: skip
        found.append(Episode(int(row["episode_index"]), int(row["length"]), data, filled.get(data, 0), videos))
        filled[data] = filled.get(data, 0) + found[-1].length
    return found


def _tasks_v3(path: Path, parquet: Any) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    if not file.is_file():
        return {}
    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    texts = next((name for name in table.column_names if name != "task_index"), "")  # pandas' index, by whatever name
    if not texts or "task_index" not in table.column_names:
        return {}
    return dict(zip(map(int, table["task_index"].to_pylist()), map(str, table[texts].to_pylist()), strict=True))
