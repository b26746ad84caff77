"""Every reader of files that others may send: damaged files are read or refused in one line, and do nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.faults.readers import readers
from tests.faults.table import Table
from tests.faults.trying import Server

for module in ("zarr", "h5py", "pyarrow", "av"):
    pytest.importorskip(module)
SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0.5)
"""Of the processor, for each reader; `make fuzz` takes ten minutes each."""


@pytest.mark.timeout(21 * SECONDS + 180)
@pytest.mark.parametrize("name", readers())
def test_damaged_files_do_no_harm(server: Server, tmp_path: Path, table: Table, name: str) -> None:
    seed = int(os.environ.get("FUZZ_SEED") or 0)
    outcome = server.fuzz(tmp_path / "work", name, SECONDS, seed, tmp_path / "findings.json")
    assert outcome.status == 0, outcome.said[-3000:]
    found = json.loads((tmp_path / "findings.json").read_text())
    assert found["refused"] >= 3 and found["tries"] >= 20
    assert not found["wrong"], "\n\n".join(found["wrong"].values())
