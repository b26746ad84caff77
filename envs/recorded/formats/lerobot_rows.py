"""Where the rows of a LeRobot data set lie: found by the columns in the data, whatever the metadata says of files."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.formats.lerobot_meta import Meta
from envs.recorded.sources import refuse_outside, refuse_pointer

GROUPS = 8
"""Row groups with images and parquet files that stay in memory."""
COUNTING = ("episode_index", "frame_index", "timestamp", "task_index")


@dataclass(frozen=True)
class Rows:
    """Of F frames in their order: the number of their file, their row in it, their time stamp [s] and task; and of each
    episode its number in the data and its frames. notes: what the metadata says otherwise."""

    files: tuple[Path, ...]
    file_F: np.ndarray
    row_F: np.ndarray
    stamp_F: np.ndarray | None
    task_F: np.ndarray | None
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    notes: tuple[str, ...]


class Tables:
    """Open parquet files, and the row groups that were read last."""

    def __init__(self, parquet: Any) -> None:
        self._parquet = parquet
        self._opened: OrderedDict[Path, tuple[Any, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()

    def file(self, path: Path) -> tuple[Any, np.ndarray]:
        """The file, and where its row groups begin `[G + 1]`. ValueError for one that is missing or cut off."""
        if path not in self._opened:
            while len(self._opened) >= GROUPS:
                self._opened.popitem(last=False)[1][0].close()
            refuse_pointer(path)
            try:
                opened = self._parquet.ParquetFile(path, memory_map=True)
                counts = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            except (OSError, ValueError) as error:  # pyarrow's own errors are of these
                raise ValueError(f"{path}: cannot be read as parquet, it is missing or cut off: {_said(error)}") from error
            self._opened[path] = opened, np.cumsum([0, *counts])
        self._opened.move_to_end(path)
        return self._opened[path]

    def names(self, path: Path) -> list[str]:
        return list(self.file(path)[0].schema_arrow.names)

    def column(self, path: Path, key: str) -> Any:
        """A whole column. ValueError where it is not there, or damaged."""
        if key not in self.names(path):
            raise ValueError(f"{path}: has no column {key!r}, which meta/info.json names; got {self.names(path)}")
        try:
            return self.file(path)[0].read(columns=[key])[key]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {key} cannot be read, it is damaged: {_said(error)}") from error

    def cells(self, path: Path, key: str, rows_M: np.ndarray) -> list[Any]:
        """What a column holds in M rows, row group by row group."""
        if key not in self.names(path):
            raise ValueError(f"{path}: has no column {key!r}, which meta/info.json names; got {self.names(path)}")
        begins = self.file(path)[1]
        group_M = np.searchsorted(begins, rows_M, side="right") - 1
        found: dict[int, Any] = {}
        for group in np.unique(group_M).tolist():
            held = self._group(path, group, key)
            for row in rows_M[group_M == group].tolist():
                found[row] = held[row - int(begins[group])].as_py()
        return [found[row] for row in rows_M.tolist()]

    def _group(self, path: Path, group: int, key: str) -> Any:
        if (path, group, key) not in self._groups:
            while len(self._groups) >= GROUPS:
                self._groups.popitem(last=False)
            try:
                self._groups[path, group, key] = self.file(path)[0].read_row_group(group, columns=[key])[key]
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: row group {group} cannot be read, it is damaged: {_said(error)}") from error
        self._groups.move_to_end((path, group, key))
        return self._groups[path, group, key]


def find_rows(path: Path, meta: Meta, tables: Tables) -> Rows:
    """Every row, by its episode and its place in it. Raises ValueError for what is cut off, with the file and the amount."""
    told_files = (told.data for told in meta.episodes.values() if told.data.exists())
    files = tuple(sorted({*path.glob("data/**/*.parquet"), *told_files}))
    if not files:
        wanted = next((told.data for told in meta.episodes.values()), path / "data")
        raise ValueError(f"{wanted}: is missing, and {path} has no other parquet file under data/; copy the data set again")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("file", "row", *COUNTING)}
    named = [int(found[1]) if (found := re.fullmatch(r"episode_(\d+)", file.stem)) else None for file in files]
    for number, file in enumerate(files):
        refuse_outside(path, file)
        names, count = tables.names(file), int(tables.file(file)[1][-1])
        parts["file"].append(np.full(count, number))
        parts["row"].append(np.arange(count))
        for name in COUNTING:
            if name in names:
                told = flat(tables.column(file, name), (1,), name, file).reshape(-1)
            elif name == "episode_index" and named[number] is not None:
                told = np.full(count, named[number])
            elif name == "episode_index":
                raise ValueError(f"{file}: has no column episode_index, which says what its rows are of; got {names}")
            else:
                told = np.full(count, np.nan)
            parts[name].append(told.astype(np.float64))
    every = {name: np.concatenate(values) for name, values in parts.items()}
    notes: list[str] = []
    _number_by_file(every, named, notes)
    has_steps = not np.isnan(every["frame_index"]).any()
    step_F = every["frame_index"] if has_steps else every["row"]
    order = np.lexsort((every["row"], every["file"], step_F, every["episode_index"]))
    every, step_F = {name: values[order] for name, values in every.items()}, step_F[order]
    episode_F = every["episode_index"]
    twice = np.flatnonzero((np.diff(episode_F) == 0) & (np.diff(step_F) == 0) & has_steps)
    if len(twice):
        at = int(twice[0])
        raise ValueError(f"{files[int(every['file'][at + 1])]}: episode {int(episode_F[at])} has frame_index "
                         f"{int(step_F[at])} twice; two "
                         "recordings were joined under one number. Number their episodes anew")  # fmt: skip
    numbers, lengths = np.unique(episode_F, return_counts=True)
    stamp_F: np.ndarray | None = every["timestamp"]
    if np.isnan(every["timestamp"]).all():
        stamp_F = step_F / meta.fps if has_steps else None
    last_E = np.cumsum(lengths) - 1
    last_s_E = np.full(len(last_E), np.nan) if stamp_F is None else stamp_F[last_E]
    each_E = zip(lengths.tolist(), step_F[last_E].tolist(), last_s_E.tolist(), strict=True)
    _compare(path, meta, dict(zip(numbers.astype(int).tolist(), each_E, strict=True)), notes)
    moved = [number for number, last in zip(numbers.astype(int).tolist(), last_E.tolist(), strict=True)
             if number in meta.episodes and files[int(every["file"][last])] != meta.episodes[number].data]  # fmt: skip
    if moved:
        notes.append(f"meta/episodes says other data files for episodes {moved[:8]} than those that hold their rows: found by "
                     f"the data")
    task_F = None if np.isnan(every["task_index"]).any() else every["task_index"].astype(np.int64)
    return Rows(files, every["file"].astype(np.int64), every["row"].astype(np.int64), stamp_F, task_F,
                tuple(numbers.astype(int).tolist()), tuple(lengths.tolist()), tuple(notes))  # fmt: skip


def _number_by_file(every: dict[str, np.ndarray], named: list[int | None], notes: list[str]) -> None:
    """Where files of an episode each say the same number in their columns, as after a merge, those of their names are taken."""
    if any(name is None for name in named):
        return
    of_file = [np.unique(every["episode_index"][every["file"] == number]) for number in range(len(named))]
    alone = [float(each[0]) for each in of_file if len(each) == 1]
    if len(alone) == len(named) and len(set(alone)) < len(alone):
        notes.append("the files' columns number several episodes alike: the numbers in the files' names are taken")
        every["episode_index"] = np.array(named, dtype=np.float64)[every["file"].astype(int)]


def _compare(path: Path, meta: Meta, there: dict[int, tuple[int, float, float]], notes: list[str]) -> None:
    """Hold the data against what is told of it. Raises ValueError where some of it is not there."""
    lacking = sorted(set(meta.episodes) - set(there))
    if lacking:
        raise ValueError(f"{meta.episodes[lacking[0]].data}: episodes {lacking[:8]} have no row in any file; the data is cut "
                         f"off or of "
                         "another set, copy it again")  # fmt: skip
    longer = []
    for number, told in sorted(meta.episodes.items()):
        length, last_step, last_s = there[number]
        reaches = last_step + 1 >= told.length or last_s * meta.fps > told.length - 1.5
        if length < told.length and not reaches:
            raise ValueError(f"{told.data}: episode {number} has {length} rows, meta/episodes says {told.length}; the data is "
                             f"cut off or "
                             "of another set, copy it again")  # fmt: skip
        if length < told.length:
            notes.append(f"episode {number} has {length} rows of {told.length}: {told.length - length} were dropped within it")
        longer += [number] if length > told.length else []
    if longer:
        notes.append(f"meta/episodes says fewer frames than there are for episodes {longer[:8]}: all are read")
    unlisted = sorted(set(there) - set(meta.episodes))
    if unlisted:
        notes.append(f"meta/episodes does not list episodes {unlisted[:8]}: found by the data")
    total = meta.totals.get("total_episodes", len(there))
    if total > len(there):
        raise ValueError(f"{path}: meta/info.json says {total} episodes, the data has {len(there)}; the data was not written "
                         f"or copied "
                         "whole")  # fmt: skip
    frames = sum(length for length, _, _ in there.values())
    if total < len(there) or meta.totals.get("total_frames", frames) != frames:
        notes.append(f"meta/info.json says {meta.totals}, the data has {len(there)} episodes of {frames} frames: the data is "
                     f"taken")


def flat(column: Any, shape: tuple[int, ...], key: str, file: Path) -> np.ndarray:
    """A column of numbers as `[rows, *shape]`, from lists, nested lists, structs or numbers.

    Raises ValueError for another size in any row, and for what are no numbers.
    """
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    count = len(array)
    array = getattr(array, "storage", array)
    sizes: list[int] = []
    while hasattr(array, "flatten") and "list" in str(array.type).split("<")[0]:
        lengths = {None if each is None else int(each) for each in np.unique(_lengths(array))} if len(array) else set()
        if array.null_count or len(lengths) > 1:
            raise ValueError(f"{file}: {key} is not {list(shape)} numbers in each row: some rows have "
                             f"{sorted(map(str, lengths))}")
        sizes += [each for each in lengths if each is not None]
        array = array.flatten()
    if str(array.type).startswith("struct"):
        parts = [each.to_numpy(zero_copy_only=False) for each in array.flatten()]
        values, sizes = np.stack(parts, axis=-1).reshape(-1), [*sizes, len(parts)]
    else:
        values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{file}: {key} is not {list(shape)} numbers in each row: it holds {array.type}")
    wanted = int(np.prod(shape))
    if values.size != count * wanted:
        raise ValueError(f"{file}: {key} is {tuple(sizes)} in each row, meta/info.json says {tuple(shape)}")
    return values.reshape(count, *shape)


def _lengths(array: Any) -> np.ndarray:
    if "fixed_size" in str(array.type):
        return np.array([array.type.list_size])
    lengths: np.ndarray = np.diff(array.offsets.to_numpy())
    return lengths


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
