"""Crashes of the machine: the operations of a write are recorded, then every state that a power cut could leave is made.

What is taken to be on disk after a crash at any moment, as POSIX promises it and journalling file systems keep it:

- a file's bytes up to its last fsync; of later bytes all, half or none;
- of what was done to the entries of one folder (created, renamed, removed), all up to the last fsync of that folder, and then
  any number of the next ones, in their order. Different folders are independent of each other.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class File:
    """Contents over time: what was written, and what of it is certainly on disk. None: nothing."""

    data: bytes = b""
    synced: bytes | None = None

    def after_crash(self) -> list[bytes]:
        if self.synced == self.data:
            return [self.data]
        return [self.data, self.data[: len(self.data) // 2], self.synced or b""]


@dataclass
class Folder:
    """entries: names to nodes, as the program sees them. pending: changes since the last fsync, as the entries they led to."""

    entries: dict[str, Any] = field(default_factory=dict)
    pending: list[dict[str, Any]] = field(default_factory=list)
    synced: dict[str, Any] = field(default_factory=dict)

    def change(self, name: str, node: Any) -> None:
        if node is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = node
        self.pending.append(dict(self.entries))


class Recorder:
    """Follows the folder `root` while a program writes there.

    It learns of files by looking at the folder at every operation, so files that a library writes by itself are seen, too.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, Folder()
        self.states: list[Folder] = []
        self._look()
        self._settle(self.tree)
        self._keep()

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Record what is done inside the block."""
        real = {name: getattr(os, name) for name in ("fsync", "rename")}

        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            real["fsync"](descriptor)
            self._look()
            self._keep()
            node = self._node(path)
            if isinstance(node, File):
                node.synced = node.data
            elif isinstance(node, Folder):
                node.synced, node.pending = dict(node.entries), []
            self._keep()

        def rename(source: Any, target: Any, **named: Any) -> None:
            self._look()
            self._keep()
            real["rename"](source, target, **named)
            before, after = Path(source), Path(target)
            if self._inside(before) and self._inside(after):
                assert before.parent == after.parent, "a rename between folders is two changes"
                folder, node = self._node(before.parent), self._node(before)
                folder.entries.pop(before.name)
                folder.change(after.name, node)  # one change: it is there under one name or under the other
            self._keep()

        with patch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            patched.setattr(os, "rename", rename)
            patched.setattr(os, "replace", rename)
            yield
        self._look()
        self._keep()

    def crashes(self, most: int = 4000) -> Iterator[Folder]:
        """The states after a crash at any moment, each once."""
        seen: set[str] = set()
        for state in self.states:
            for after in _after_crash(state):
                text = _text(after)
                if text not in seen:
                    seen.add(text)
                    yield after
                    assert len(seen) <= most, "too many states"

    def _inside(self, path: Path) -> bool:
        return path.is_relative_to(self.root)

    def _node(self, path: Path) -> Any:
        node: Any = self.tree
        if not self._inside(path):
            return None
        for part in path.relative_to(self.root).parts:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    def _look(self) -> None:
        """Take in what was created, written or removed since the last look."""
        _compare(self.tree, self.root)

    def _settle(self, folder: Folder) -> None:
        folder.synced, folder.pending = dict(folder.entries), []
        for node in folder.entries.values():
            if isinstance(node, Folder):
                self._settle(node)
            else:
                node.synced = node.data

    def _keep(self) -> None:
        self.states.append(_copied(self.tree, {}))


def _compare(folder: Folder, path: Path) -> None:
    there = {each.name: each for each in path.iterdir()}
    for name in [name for name in folder.entries if name not in there]:
        folder.change(name, None)
    for name, each in there.items():
        node = folder.entries.get(name)
        if each.is_dir():
            if not isinstance(node, Folder):
                node = Folder()
                folder.change(name, node)
            _compare(node, each)
        else:
            data = each.read_bytes()
            if not isinstance(node, File):
                node = File()
                folder.change(name, node)
            node.data = data


def _copied(node: Any, known: dict[int, Any]) -> Any:
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, File):
        known[id(node)] = File(node.data, node.synced)
    else:
        made = known[id(node)] = Folder()
        made.entries = {name: _copied(each, known) for name, each in node.entries.items()}
        made.synced = {name: _copied(each, known) for name, each in node.synced.items()}
        made.pending = [{name: _copied(each, known) for name, each in state.items()} for state in node.pending]
    return known[id(node)]


def _after_crash(folder: Folder) -> Iterator[dict[str, Any]]:
    """Trees of bytes and dictionaries."""
    for entries in [folder.synced, *folder.pending]:
        names = sorted(entries)
        options = [
            list(_after_crash(entries[name])) if isinstance(entries[name], Folder) else entries[name].after_crash()
            for name in names
        ]  # fmt: skip
        for chosen in itertools.product(*options):
            yield dict(zip(names, chosen, strict=True))


def _text(tree: dict[str, Any]) -> str:
    return repr({name: _text(each) if isinstance(each, dict) else hash(each) for name, each in tree.items()})


def put(tree: dict[str, Any], place: Path) -> Path:
    """Write such a tree to an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, each in tree.items():
        if isinstance(each, dict):
            put(each, place / name)
        else:
            (place / name).write_bytes(each)
    return place
