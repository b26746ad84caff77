"""Trees of tensors and their rows on disk, as training in place reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from teachers.adapters.conditions import (
    ComputedConditions,
    StoredConditions,
    detached,
    joined,
    leaves,
    mapped,
    opened,
    rows_of,
    shard_path,
    size_bytes,
    write_shard,
)

CPU = torch.device("cpu")


def a_tree(rows: int = 7) -> Any:
    numbers = torch.arange(float(rows * 6)).view(rows, 2, 3)
    return {"keys": [numbers, numbers.bfloat16() + 1], "mask": (numbers[:, 0] > 4, None), "length": 3}


def test_a_condition_may_be_any_tree_of_tensors() -> None:
    tree = {"a": torch.arange(6.0).view(3, 2), "b": [(torch.arange(3), None), "text"]}
    one, rest = rows_of(tree, slice(0, 1)), rows_of(tree, slice(1, 3))
    whole = joined([rest, one])
    assert whole["a"].tolist() == [[2, 3], [4, 5], [0, 1]] and whole["b"][0][0].tolist() == [1, 2, 0]
    assert whole["b"][0][1] is None and whole["b"][1] == "text"
    assert [each.tolist() for each in leaves(one)] == [[[0, 1]], [0]] and size_bytes(tree) == 6 * 4 + 3 * 8
    with torch.inference_mode():
        made = torch.ones(2)
    assert not detached([made])[0].is_inference()
    assert mapped(lambda value: value + 1, {"a": made})["a"].tolist() == [2, 2]


def test_stored_rows_are_those_of_the_tree_in_any_order_and_type(tmp_path: Path) -> None:
    tree = a_tree()
    for shard, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        write_shard(shard_path(tmp_path, shard), rows_of(tree, rows))
    stored = StoredConditions(tmp_path, 3, rows_of(tree, slice(0, 1)), CPU)
    order = [5, 0, 6, 5]
    got, wanted = stored.rows(order), mapped(lambda value: value[order], tree)
    for mine, its in zip(leaves(got), leaves(wanted), strict=True):
        assert mine.dtype == its.dtype and torch.equal(mine, its)
    assert got["mask"][1] is None and got["length"] == 3
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_is_missing_or_cut_is_told_in_a_line(tmp_path: Path) -> None:
    tree = a_tree(2)
    write_shard(shard_path(tmp_path, 0), tree)
    stored = StoredConditions(tmp_path, 2, tree, CPU)
    with pytest.raises(ValueError, match="conditions-00001.safetensors is no whole safetensors file"):
        stored.rows([3])
    shard_path(tmp_path, 0).write_bytes(shard_path(tmp_path, 0).read_bytes()[:-9])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        opened(shard_path(tmp_path, 0))


def test_computed_rows_are_encoded_whenever_they_are_asked_for() -> None:
    seen: list[int] = []

    def encode(observation: dict[str, Tensor]) -> Tensor:
        seen.append(len(observation["x"]))
        return observation["x"] * 2

    computed = ComputedConditions(encode, CPU)
    computed.observe(0, {"x": np.array([[1.0], [2.0]])})
    computed.observe(2, {"x": np.array([[3.0]])})
    assert computed.rows([2, 0]).tolist() == [[6.0], [2.0]] and computed.rows([2]).tolist() == [[6.0]]
    assert seen == [2, 1] and computed.encoded == 3
