"""Power cuts: from every state of the disk that one could leave, a stage is the old one, can be resumed, or is the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from distill.config import StudentConfig
from distill.hypotheses.cache import CachePlan, shard_name, write_shards
from distill.store.manifest import commit, finished, make_folder, make_key, partial_folder, publish, verify, write_bytes
from distill.training.loop import RESUME, Share, batch_indices, fit
from envs.specs import STATE
from teachers.networks.normalisation import Normaliser
from tests.faults.crashes import Recorder, put
from tests.faults.table import Table

OLD, NEW = make_key({"seed": 0}), make_key({"seed": 1})


def _fill(partial: Path, text: str) -> None:
    make_folder(partial / "inner")
    (partial / "a.txt").write_text(text)
    (partial / "inner" / "b.txt").write_text(2 * text)


def _contents(folder: Path) -> tuple[str, str]:
    return (folder / "a.txt").read_text(), (folder / "inner" / "b.txt").read_text()


@pytest.mark.parametrize("before", ["nothing", "another result", "the same result archived"])
def test_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table, before: str) -> None:
    root = tmp_path / "run"
    folder = root / "train" / "stage"
    make_folder(folder.parent)
    if before != "nothing":
        _fill(partial_folder(folder, OLD), "old")
        commit(folder, OLD, {"seed": 0}, 1.0)
    if before == "the same result archived":
        _fill(partial_folder(folder, NEW), "new")
        commit(folder, NEW, {"seed": 1}, 1.0)
        assert finished(folder, OLD)
    recorder = Recorder(root)
    with recorder.recording(monkeypatch):
        _fill(partial_folder(folder, NEW), "new")
        commit(folder, NEW, {"seed": 1}, 1.0)
    count = 0
    for tree in recorder.crashes():
        count += 1
        crashed = put(tree, tmp_path / "crashed") / "train" / "stage"
        if before != "nothing":  # the old result is never lost
            assert finished(crashed, OLD) and _contents(crashed) == ("old", "oldold")
            put(tree, tmp_path / "crashed")
        if not finished(crashed, NEW):  # then it goes on from whatever there is
            _fill(partial_folder(crashed, NEW), "new")
            commit(crashed, NEW, {"seed": 1}, 1.0)
        assert _contents(crashed) == ("new", "newnew")
        verify(crashed)
        table.add("power cut", "commit, shards, checkpoints", [], "")
    assert count >= 8
    # what commit returned from is on disk, whatever was not written yet
    *_, last = recorder.states
    recorder.states = [last]
    for tree in recorder.crashes():
        assert finished(put(tree, tmp_path / "crashed") / "train" / "stage", NEW)


class Drawing:
    """A teacher whose chunks are its generator's numbers."""

    def sample(self, observation: Any, num_hypotheses: int, num_steps: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(len(observation[STATE]), num_hypotheses, 4, 2, generator=generator)


def _draw(folder: Path) -> None:
    plan = CachePlan(np.arange(9), 2, 1, 3, 3, 0)
    normaliser, span = Normaliser(2, 2), {"min": np.array([-1.0, -1.0]), "max": np.array([1.0, 1.0])}
    normaliser.fit({"state": span, "action": span})
    write_shards(folder, Drawing(), normaliser, plan, lambda rows: {STATE: np.ones((len(rows), 1, 2))}, range(3),  # type: ignore[arg-type]
                 torch.device("cpu"))  # fmt: skip


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    (tmp_path / "run").mkdir()
    recorder = Recorder(tmp_path / "run")
    with recorder.recording(monkeypatch):
        _draw(tmp_path / "run")
    expected = {shard_name(shard): (tmp_path / "run" / shard_name(shard)).read_bytes() for shard in range(3)}
    count = 0
    for tree in recorder.crashes():
        count += 1
        crashed = put(tree, tmp_path / "crashed")
        _draw(crashed)
        assert {name: (crashed / name).read_bytes() for name in expected} == expected
        table.add("power cut", "commit, shards, checkpoints", [], "")
    assert count >= 20


def _train(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    settings = StudentConfig(training_steps=4, batch_size=2, warmup_steps=1, candidates=2)
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))

    def batches(first: int, last: int, share: Share) -> Any:
        for step in range(first, last):
            yield data[batch_indices(0, step, 2, len(data))]

    def save(average: nn.Module, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        save_file(dict(average.state_dict()), str(target / "model.safetensors"))

    fit(Accelerator(cpu=True), model, batches, lambda wrapped, batch, *_: wrapped(batch).square().mean(), settings, 0, folder,
        save, lambda step, loss: None, "test", alone=True)  # fmt: skip


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    make_folder(tmp_path / "run" / "train")
    recorder = Recorder(tmp_path / "run")
    with recorder.recording(monkeypatch):
        _train(tmp_path / "run" / "train")
    places = [path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.safetensors") if path.name != RESUME]
    expected = {place: load_file(str(tmp_path / "run" / place)) for place in places}
    assert len(expected) == 2
    count = 0
    for tree in recorder.crashes():
        count += 1
        crashed = put(tree, tmp_path / "crashed")
        _train(crashed / "train")
        for place, weights in expected.items():
            got = load_file(str(crashed / place))
            assert all(torch.equal(got[name], value) for name, value in weights.items()), (place, tree.keys())
        table.add("power cut", "commit, shards, checkpoints", [], "")
    assert count >= 10


def test_what_is_published_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording(monkeypatch):
        _fill(root / ".partial", "new")
        publish(root / ".partial", root / "exported")
    for tree in recorder.crashes():
        crashed = put(tree, tmp_path / "crashed")
        assert not (crashed / "exported").exists() or _contents(crashed / "exported") == ("new", "newnew")
    recorder.states = recorder.states[-1:]
    for tree in recorder.crashes():
        assert _contents(put(tree, tmp_path / "crashed") / "exported") == ("new", "newnew")


def test_what_is_not_synced_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay itself: a file that is renamed before it is on disk may be empty, and the entry may be the old one."""
    import os

    root = tmp_path / "run"
    root.mkdir()
    (root / "file").write_text("old")
    recorder = Recorder(root)
    with recorder.recording(monkeypatch):
        (root / "new").write_text("new.")
        os.rename(root / "new", root / "file")
    assert {tree.get("file") for tree in recorder.crashes()} == {b"old", b"new.", b"ne", b""}
    recorder = Recorder(root)
    with recorder.recording(monkeypatch):
        write_bytes(root / "file", b"newer")
    assert {tree.get("file") for tree in recorder.crashes()} == {b"new.", b"newer"}
