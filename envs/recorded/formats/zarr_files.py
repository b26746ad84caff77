"""What a zarr group's metadata says of its arrays, read as JSON: a folder or a zip, format 2 or 3; no array is opened."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.sources import refuse_endless, refuse_outside, refuse_pointer

ARRAYS = (".zarray", "zarr.json")
ENDS = "meta/episode_ends"


@dataclass(frozen=True)
class ArrayTold:
    """An array by its metadata. codecs: the names of what its chunks are packed with."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    codecs: tuple[str, ...]
    is_objects: bool


class ZarrFiles:
    """The files of a group that lies at `path`, or in a folder within it."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a zip that is cut off, and where there is no replay buffer, or more than one."""
        self.path = path
        tops = {name.removesuffix(f"{ENDS}/{end}") for name in self._all for end in ARRAYS
                if f"/{name}".endswith(f"/{ENDS}/{end}")}  # fmt: skip
        found = sorted(each.removesuffix("/") for each in tops if not each.startswith("__MACOSX"))
        if len(found) > 1:
            raise ValueError(f"{path}: holds several replay buffers: {found[:8]}; unpack it and give one of them")
        if not found:
            shown = sorted({name.split("/")[0] for name in self._all})[:8]
            raise ValueError(f"{path}: cannot be read as a replay buffer with data/* and {ENDS}: got {shown}")
        self.top = found[0]

    @cached_property
    def names(self) -> frozenset[str]:
        """Every file, relative to the group."""
        lead = f"{self.top}/" if self.top else ""
        return frozenset(name.removeprefix(lead) for name in self._all if name.startswith(lead))

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self._walk())

    def _walk(self) -> Iterator[str]:
        if not self.path.is_file():
            for path in self.path.rglob("*"):
                if path.is_file():
                    yield path.relative_to(self.path).as_posix()
                else:
                    refuse_endless(path)
            return
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield from archive.namelist()
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: is no whole zip file ({error}); copy it again") from error

    def place(self, name: str) -> Path:
        """Where a file of the group lies, or would lie in the zip."""
        return self.path / self.top / name if self.top else self.path / name

    def bytes(self, name: str) -> bytes:
        if not self.path.is_file():
            return self.place(name).read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(f"{self.top}/{name}" if self.top else name)
        except (zipfile.BadZipFile, OSError, KeyError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error}; copy the zip again") from error

    def check_places(self, key: str) -> None:
        """Raise ValueError where files of an array are pointers of git-lfs or lead out of the group."""
        if self.path.is_file():
            return
        for number, name in enumerate(sorted(name for name in self.names if name.startswith(f"{key}/"))):
            if number < 8:
                refuse_pointer(self.place(name))
            if self.place(name).is_symlink():
                refuse_outside(self.path, self.place(name))

    def arrays(self) -> dict[str, ArrayTold]:
        """The arrays under ``data/``, by their names within it. Raises ValueError for metadata that is no JSON."""
        found = {}
        for name in sorted(self.names):
            folder, _, last = name.rpartition("/")
            if last in ARRAYS and folder.startswith("data/"):
                told = self.told(name)
                if told is not None:
                    found[folder.removeprefix("data/")] = told
        return found

    def told(self, name: str) -> ArrayTold | None:
        """What a file of metadata says; None for that of a group."""
        place = self.place(name)
        if not self.path.is_file():
            refuse_pointer(place)
        try:
            held = json.loads(self.bytes(name))
            if not isinstance(held, dict):
                raise ValueError("a list")
        except ValueError as error:
            raise ValueError(f"{place}: is no JSON ({error}); the data was not written whole") from error
        if held.get("node_type") == "group":
            return None
        coded = json.dumps([held.get(part) for part in ("dtype", "data_type", "filters", "compressor", "codecs")])
        objects = '"|O"' in coded or '"pickle"' in coded or "json2" in coded
        parts = [held.get("compressor"), *(held.get("filters") or []), *(held.get("codecs") or [])]
        codecs = tuple(str(each.get("id") or each.get("name")) for each in parts if isinstance(each, dict))
        try:
            shape = tuple(int(size) for size in held["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place}: says no shape: {held.get('shape')!r}; the data was not written whole") from error
        try:
            dtype: np.dtype[Any] | None = np.dtype(str(held.get("dtype") or held.get("data_type")))
        except TypeError:  # a dtype that numpy does not know
            dtype = None
        return ArrayTold(shape, dtype, codecs, objects)
