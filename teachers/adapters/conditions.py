"""What a policy's `encode` returns, a tree of tensors with a row per observation: its parts, its files, and how rows are read.

teachers/adapters/program.py loads it by its path, in the user's interpreter: it imports torch and nothing of ours. Python 3.10
or newer; safetensors, for what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tree = Any
"""Tensors in dicts, lists and tuples: a condition."""


class StoredConditions:
    """Conditions in files of `shard_size` rows each, read row by row through memory maps.

    like: a condition of any observation, for the structure that all of them share; device: where rows are put.
    """

    def __init__(self, folder: Path, shard_size: int, like: Tree, device: torch.device) -> None:
        self.folder, self.shard_size, self.like, self.device = folder, shard_size, like, device
        self._files: dict[int, Any] = {}

    def rows(self, rows: Sequence[int]) -> Tree:
        """The conditions of these observations. Raises ValueError for a shard that is missing or damaged."""
        found = [[self._open(row // self.shard_size).get_slice(str(part)) for row in rows] for part in range(count(self.like))]
        within = [row % self.shard_size for row in rows]
        parts = iter([torch.cat([each[row : row + 1] for each, row in zip(part, within, strict=True)]) for part in found])
        return mapped(lambda _: next(parts).to(self.device), self.like)

    def _open(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = opened(shard_path(self.folder, shard))
        return self._files[shard]


class ComputedConditions:
    """Conditions that are encoded again whenever they are needed, from observations in memory. encoded: rows so far."""

    def __init__(self, encode: Callable[[dict[str, Tensor]], Tree], device: torch.device) -> None:
        self.encode, self.device, self.encoded = encode, device, 0
        self._observations: dict[int, dict[str, np.ndarray]] = {}

    def observe(self, first: int, observation: Mapping[str, np.ndarray]) -> None:
        """The observations of the rows `first` .., `[n, ..]` each."""
        for number in range(len(next(iter(observation.values())))):
            self._observations[first + number] = {name: each[number : number + 1] for name, each in observation.items()}

    def rows(self, rows: Sequence[int]) -> Tree:
        """The conditions of these observations."""
        seen = [self._observations[row] for row in rows]
        arrays = {name: np.concatenate([each[name] for each in seen]) for name in seen[0]}
        self.encoded += len(rows)
        return detached(self.encode({name: torch.from_numpy(value).to(self.device) for name, value in arrays.items()}))


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"conditions-{shard:05d}.safetensors"


def write_shard(path: Path, condition: Tree) -> None:
    """Write a condition's tensors, in the order of its tree; there whole or not at all."""
    write_tensors(path, {str(number): value for number, value in enumerate(leaves(condition))}, {})


# -- files ---------------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file, there whole or not at all. Raises ValueError without the package."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ValueError("training in place writes safetensors files; in this interpreter: pip install safetensors") from error
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def opened(path: Path) -> Any:
    """A safetensors file as a memory map. Raises ValueError without the package, or for a file that is not whole."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError("training in place reads safetensors files; in this interpreter: pip install safetensors") from error
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file. Raises ValueError as `opened`."""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


# -- trees ---------------------------------------------------------------------------------------------------------------


def mapped(change: Callable[..., Tensor], *trees: Tree) -> Tree:
    """The first tree with each tensor replaced by what `change` makes of those that stand there in all trees."""
    first = trees[0]
    if isinstance(first, Tensor):
        return change(*trees)
    if isinstance(first, dict):
        return {name: mapped(change, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, (list, tuple)):
        parts = [mapped(change, *each) for each in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree in the order in which `mapped` meets them."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append(value)
        return value

    mapped(keep, tree)
    yield from found


def count(tree: Tree) -> int:
    """How many tensors a tree has."""
    return len(list(leaves(tree)))


def size_bytes(tree: Tree) -> int:
    """What its tensors take."""
    return sum(each.numel() * each.element_size() for each in leaves(tree))


def rows_of(condition: Tree, rows: slice) -> Tree:
    """Some rows of each tensor."""
    return mapped(lambda value: value[rows], condition)


def joined(conditions: Sequence[Tree]) -> Tree:
    """The rows of all conditions, one after the other."""
    return mapped(lambda *values: torch.cat(values), *conditions)


def detached(condition: Tree) -> Tree:
    """The same without a graph; of tensors made in inference mode a copy, which autograd may keep."""
    return mapped(lambda value: value.clone() if value.is_inference() else value.detach(), condition)
