"""The store at the size of a million observations: opened fast, in little memory, and not hashed again at every start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.hypotheses import cache
from distill.hypotheses.cache import MOST_OPEN, HypothesisDataset, shard_name
from distill.store import manifest as store
from distill.store.manifest import commit, finished, make_key, partial_folder, sha256_file, verify, write_json

KEY = make_key({"seed": 0})
OBSERVATIONS, SHARD, K, T, A = 1_000_000, 1024, 32, 16, 8


def _stage(folder: Path) -> Path:
    partial = partial_folder(folder, KEY)
    partial.mkdir(parents=True)
    (partial / "a.txt").write_text("one")
    (partial / "b.txt").write_text("two")
    commit(folder, KEY, {"seed": 0}, 1.0)
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(store, "sha256_file", counted)
    monkeypatch.delenv(store.HASH_EVERYTHING, raising=False)
    return names


def test_what_has_not_changed_is_not_hashed_again(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _stage(tmp_path / "stage")
    assert sorted(hashed) == ["a.txt", "b.txt"]  # by the commit
    hashed.clear()
    assert finished(folder, KEY) and hashed == []
    os.utime(folder / "a.txt")  # touched: its bytes are looked at, once
    assert finished(folder, KEY) and hashed == ["a.txt"]
    hashed.clear()
    assert finished(folder, KEY) and hashed == []
    monkeypatch.setenv(store.HASH_EVERYTHING, "1")
    assert finished(folder, KEY) and sorted(hashed) == ["a.txt", "b.txt"]


def test_a_change_that_keeps_size_and_time_is_found(tmp_path: Path, hashed: list[str]) -> None:
    folder = _stage(tmp_path / "stage")
    told = (folder / "a.txt").stat()
    time.sleep(0.02)  # longer than a tick of the clock of file systems
    (folder / "a.txt").write_text("odd")
    os.utime(folder / "a.txt", ns=(told.st_atime_ns, told.st_mtime_ns))
    with pytest.raises(ValueError, match=r"a\.txt was changed since it was written"):
        verify(folder)


def test_damage_below_the_file_system_is_found_by_hashing_everything(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _stage(tmp_path / "stage")
    (folder / "a.txt").write_text("odd")
    held = json.loads(store._hashed_path(folder).read_text())
    state = store._state_of(folder / "a.txt")
    assert state is not None
    write_json(store._hashed_path(folder), {**held, "a.txt": [*state, held["a.txt"][-1]]})  # as if the disk had flipped bits
    assert finished(folder, KEY)
    monkeypatch.setenv(store.HASH_EVERYTHING, "1")
    with pytest.raises(ValueError, match=r"a\.txt was changed since it was written"):
        finished(folder, KEY)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.txt": 3}', '{"a.txt": [1, 2]}', "[" * 5000])
def test_a_damaged_note_of_hashes_costs_a_hash_and_no_more(tmp_path: Path, hashed: list[str], text: str) -> None:
    folder = _stage(tmp_path / "stage")
    store._hashed_path(folder).write_text(text)
    hashed.clear()
    assert finished(folder, KEY) and "a.txt" in hashed
    hashed.clear()
    assert finished(folder, KEY) and hashed == []


OPEN = textwrap.dedent("""\
    import json, sys, time
    from pathlib import Path
    import torch
    from distill.hypotheses.cache import HypothesisDataset
    from distill.store.manifest import finished
    folder, key = Path(sys.argv[1]), sys.argv[2]


    def peak():  # of this program: ru_maxrss would be that of the process that started it
        told = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in told.splitlines() if line.startswith("VmHWM:")))


    before = peak()
    began = time.perf_counter()
    assert finished(folder, key)
    dataset = HypothesisDataset(folder)
    first = dataset[len(dataset) - 1]
    opened = time.perf_counter() - began
    rows = torch.randint(len(dataset), (128,), generator=torch.Generator().manual_seed(0))
    for batch in rows.split(32):
        dataset.batch(batch)
    read = peak()
    print(json.dumps({"seconds": opened, "kilobytes": read - before, "all": read, "open": len(dataset._open),
                      "seed": first["seed"].tolist()}))
""")


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of a million observations, 8 GB of holes that take a few megabytes of disk."""
    folder = tmp_path_factory.mktemp("million") / "sample"
    folder.mkdir()
    files: dict[str, str] = {}
    sums: dict[int, str] = {}
    for shard in range(-(-OBSERVATIONS // SHARD)):
        rows = min(SHARD, OBSERVATIONS - shard * SHARD)
        described, at = dict[str, Any](), 0
        for name, kind, size, shape in (("observation.state", "F32", 4, (rows, 1, 4)), ("seed", "I64", 8, (rows, K)),
                                        ("hypotheses", "F16", 2, (rows, K, T, A))):  # fmt: skip
            length = int(np.prod(shape)) * size
            described[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + length]}
            at += length
        header = json.dumps(described).encode()
        header += b" " * (-len(header) % 8)
        path = folder / shard_name(shard)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + at)
        if rows not in sums:
            sums[rows] = sha256_file(path)
        files[path.name] = sums[rows]
    write_json(folder / "index.json", {"observations": OBSERVATIONS, "num_hypotheses": K, "shard_size": SHARD})
    files["index.json"] = sha256_file(folder / "index.json")
    write_json(folder / "manifest.json", {"key": KEY, "files": files})
    hashes = {name: [*(store._state_of(folder / name) or ()), sha256] for name, sha256 in files.items()}
    write_json(store._hashed_path(folder), hashes)
    return folder


def test_a_million_observations_open_at_once(million: Path) -> None:
    assert sum(path.stat().st_size for path in million.iterdir()) > 8e9
    done = subprocess.run([sys.executable, "-c", OPEN, str(million), KEY], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parents[3], env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["seconds"] < 2 and told["all"] < 1 << 20  # kilobytes: a gibibyte
    assert told["open"] <= MOST_OPEN and told["seed"] == [0] * K


def test_a_reader_keeps_few_shards_open(million: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_OPEN", 100)
    before, dataset = len(os.listdir("/proc/self/fd")), HypothesisDataset(million)
    assert len(dataset) == OBSERVATIONS
    rows = torch.arange(0, OBSERVATIONS, 6 * SHARD)
    first = dataset.batch(rows, ["seed"])
    assert list(first) == ["seed"] and first["seed"].shape == (len(rows), K)
    assert len(dataset._open) == 100 < len(rows)
    assert list(dataset._open)[-1] == int(rows[-1]) // SHARD
    assert len(os.listdir("/proc/self/fd")) <= before + 100
