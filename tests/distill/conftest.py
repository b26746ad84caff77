"""A whole run of the recipe, tiny, made once: tests copy it and go on from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.config import StudentConfig
from distill.hypotheses.cache import HypothesisDataset, shard_name
from envs.specs import STATE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "distill.py"

DEFAULT = StudentConfig().default

TINY = f"""\
processes: 1
demos: {{train_starts: 2}}
teacher: {{training_steps: 20, batch_size: 16, warmup_steps: 5, candidates: 2, width: 32, depth: 1, heads: 2,
  horizon: 16, patch: 8}}
sample: {{num_hypotheses: 4, num_steps: 2, num_observations: 40, shard_size: 16, batch_size: 8}}
student: {{objectives: [regression, {DEFAULT}], training_steps: 10, batch_size: 8, num_latents: 4, codes: 8,
  warmup_steps: 2, candidates: 2}}
evaluate: {{test_starts: 6, validation_starts: 4, teacher_steps: [4, 1], execution_horizon: 8, selection: outlier_rejection,
  fidelity_observations: 5, fidelity_samples: 8, latency_calls: 20, latency_warmup: 2, latency_modes: [],
  frontier_samples: [1]}}
"""

RUN = "avoid-seed0"
"""The name that a run of the tiny config has by default."""

Stamps = dict[str, tuple[int, int]]


def command(*arguments: str, launcher: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *launcher, str(SCRIPT), *arguments]


def environment() -> dict[str, str]:
    """One thread, and nothing of a launcher that the tests themselves may run under."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    return {**{name: value for name, value in os.environ.items() if name not in foreign}, "OMP_NUM_THREADS": "1"}


def run_command(folder: Path, *arguments: str, launcher: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The launch script in a process of its own, working in `folder`."""
    return subprocess.run(
        command(*arguments, launcher=launcher), cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip


def stamps(folder: Path, pattern: str = "**/*") -> Stamps:
    """Modification time and inode of every file below, except the lock and notes of hashes: touched by nobody means equal."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(folder.glob(pattern)) if path.is_file() and not path.name.endswith((".lock", ".hashed.json"))
    }  # fmt: skip


@dataclass(frozen=True)
class TinyRun:
    """folder: where the run was started; config: its preset; output: what it said."""

    folder: Path
    config: Path
    output: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / RUN


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """One finished run with one process. Do not change it; see `copied_run`."""
    folder = tmp_path_factory.mktemp("tiny")
    done = run_command(folder, "--config", str(tiny_config))
    assert done.returncode == 0, done.stdout + done.stderr
    return TinyRun(folder, tiny_config, done.stdout)


@pytest.fixture
def copied_run(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A copy of the finished run, and the working directory beside it."""
    shutil.copytree(tiny_run.folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return TinyRun(tmp_path, tiny_run.config, tiny_run.output)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], int]:
    """The command line within this process, as one process without a launcher."""
    from distill.cli.main import main as call

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return call


@pytest.fixture(scope="session")
def whole() -> SimpleNamespace:
    """How to start the launch script in a process of its own, and to see which files were touched."""
    return SimpleNamespace(command=command, environment=environment, run_command=run_command, stamps=stamps)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cache(tmp_path: Path) -> HypothesisDataset:
    """23 observations of 8 hypotheses in shards of 5; in the first 20 they are two clumps of chunks, then one."""
    states = _normal(23, 2, 2)
    chunks = 0.05 * _normal(23, 8, 4, 2, seed=1)
    chunks[:20, 4:] += 1.0
    for shard in range(5):
        part = slice(5 * shard, 5 * shard + 5)
        tensors = {STATE: states[part], "hypotheses": chunks[part].half(), "seed": torch.zeros(len(states[part]), 8).long()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / shard_name(shard))
    (tmp_path / "index.json").write_text(json.dumps({"observations": 23, "num_hypotheses": 8, "shard_size": 5}))
    return HypothesisDataset(tmp_path)
