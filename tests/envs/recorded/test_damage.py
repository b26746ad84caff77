"""Whatever is damaged in a recording: a ValueError of one line with its path, never anything else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.inspection import inspect
from tests.envs.recorded.writers import FORMATS, walk

for module in ("zarr", "h5py", "pyarrow", "av"):
    pytest.importorskip(module)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    rng = random.Random(sum(map(ord, name)))
    images = tuple(np.random.default_rng(each).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8) for each in range(3))
    whole = FORMATS[name](tmp_path / "whole", walk(3, 8, images=images))
    refused = 0
    for number in range(25):
        path = tmp_path / f"{number}{''.join(whole.suffixes)}"
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, path)
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        file = rng.choice(files)
        held = bytearray(file.read_bytes())
        how = rng.choice(["cut", "flip", "empty", "delete"] if path.is_dir() else ["cut", "flip", "empty"])
        if how == "delete":
            file.unlink()
        else:
            for _ in range(8 if how == "flip" and held else 0):
                held[rng.randrange(len(held))] = rng.randrange(256)
            file.write_bytes({"cut": held[: rng.randrange(len(held) + 1)], "empty": b""}.get(how, held))
        try:
            recorded = open_recorded(path)
            inspect(recorded)
            recorded.fingerprint()
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error), f"{file} ({how}): {error}"
            assert type(error) is ValueError
    assert refused > 3
