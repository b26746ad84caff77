"""Doing stages: each once, after what it reads, going on where it was left; a folder belongs to one run at a time."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distill.config import Config
from distill.runtime.context import Context
from distill.runtime.execution import ensure, in_order, run_stage
from distill.runtime.stage import FolderStage, Input
from distill.store.manifest import partial_folder, read_manifest, verify


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(runs_dir=tmp_path / "runs", name="mine")


@dataclass(frozen=True)
class Toy(FolderStage):
    """A stage of any settings and inputs that does what it is told."""

    called: str
    options: Mapping[str, Any]
    work: Callable[[Path], object] = lambda folder: None
    read_stages: tuple[Toy, ...] = ()

    @property
    def name(self) -> str:
        return self.called

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.options

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"stages": self.read_stages} if self.read_stages else {}

    def run(self, context: Context, folder: Path) -> None:
        self.work(folder)


def _writes(calls: list[Path], text: str = "x") -> Callable[[Path], object]:
    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "file.txt").write_text(text)

    return work


def _open(config: Config) -> Context:
    return Context.open(config.folder, config.wandb)


def _done(config: Config, stage: Toy) -> Path:
    with _open(config) as context:
        return run_stage(context, stage)


def test_a_stage_is_done_once_and_then_reused(config: Config, capsys) -> None:
    calls: list[Path] = []
    stage = Toy("some/stage", {"a": 1}, _writes(calls))
    for _ in range(2):
        folder = _done(config, stage)
    assert folder == config.folder / "some/stage" and (folder / "file.txt").read_text() == "x"
    assert calls == [partial_folder(folder, stage.key)]
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["key"] == stage.key and manifest["made_from"] == {"a": 1}
    told = capsys.readouterr().out
    assert told.count("[1/1] some/stage: done in") == 1 and told.count("[1/1] some/stage: done before, reused") == 1


def test_a_stage_of_other_inputs_is_done_again_and_the_old_one_comes_back(config: Config) -> None:
    calls: list[Path] = []
    with _open(config) as context:
        for value in (1, 2, 1, 2, 1):
            folder = run_stage(context, Toy("stage", {"a": value}, _writes(calls, str(value))))
            assert (folder / "file.txt").read_text() == str(value)
    assert len(calls) == 2


def test_the_key_names_the_stage_too() -> None:
    assert Toy("one", {"a": 1}).key != Toy("two", {"a": 1}).key
    assert Toy("one", {"a": 1}).key == Toy("one", {"a": 1}).key != Toy("one", {"a": 2}).key


def test_what_an_interrupted_stage_left_is_handed_to_the_next_go(config: Config) -> None:
    found: list[str] = []

    def interrupted(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _done(config, Toy("stage", {}, interrupted))
    assert not (config.folder / "stage").exists()
    # the lock was given back
    folder = _done(config, Toy("stage", {}, lambda partial: found.append((partial / "half.txt").read_text())))
    assert found == ["half"] and (folder / "half.txt").read_text() == "half"


def test_the_cost_of_a_stage_is_that_of_all_its_goes(config: Config) -> None:
    def burn(folder: Path) -> None:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        (folder / "more.txt").write_text("more")

    def interrupted(folder: Path) -> None:
        burn(folder)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _done(config, Toy("stage", {}, interrupted))
    manifest = verify(_done(config, Toy("stage", {}, burn)))
    assert manifest["cpu_seconds"] >= 0.6 and manifest["seconds"] >= 0.6
    assert sorted(path.name for path in (config.folder / "stage").iterdir()) == ["manifest.json", "more.txt"]


def test_a_changed_file_is_refused_and_the_work_not_done_over_it(config: Config) -> None:
    calls: list[Path] = []
    folder = _done(config, Toy("stage", {}, _writes(calls)))
    (folder / "file.txt").write_text("y")
    with pytest.raises(ValueError, match=r"stage/file\.txt was changed since it was written"):
        _done(config, Toy("stage", {}, _writes(calls)))
    assert len(calls) == 1 and (folder / "file.txt").read_text() == "y"


def test_two_cannot_work_in_one_folder(config: Config) -> None:
    with _open(config):
        pass
    with (config.folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            ValueError, match="another flow2one is working in .*mine; wait for it.*or name another folder"
        ):
            _open(config)
    with _open(config):
        pass


def test_measurements_are_logged_a_line_each(config: Config) -> None:
    for step in (1, 2):
        with _open(config) as context:
            context.log("teach", {"step": step, "loss": 0.5 / step})
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["loss"]) for line in lines] == [("teach", 1, 0.5), ("teach", 2, 0.25)]
    assert all(line["time"] > 1.6e9 for line in lines)


def test_wandb_asked_for_but_missing_is_said_clearly(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match="wandb was asked for but is not installed; pip install wandb, or --wandb disabled"
    ):
        _open(Config(runs_dir=config.runs_dir, name="mine", wandb="offline"))


def test_one_process_has_all_the_work(config: Config) -> None:
    with _open(config) as context:
        assert context.is_main and (context.share.rank, context.share.world) == (0, 1)
        assert list(context.my_share(range(5))) == [0, 1, 2, 3, 4] and context.gather([1, 2]) == [1, 2]
        assert context.on_main(lambda: 7) == 7
        with pytest.raises(ValueError, match="no good"):
            context.on_main(lambda: (_ for _ in ()).throw(ValueError("no good")))


# -- in their order ----------------------------------------------------------------------------------------------------


def test_a_stage_is_done_after_what_it_reads_and_each_is_done_once(config: Config) -> None:
    calls: list[str] = []

    def stage(name: str, *read: Toy) -> Toy:
        return Toy(name, {}, lambda folder: calls.append(name), read)

    first = stage("first")
    left, right = stage("left", first), stage("right", first)
    last = stage("last", right, left)
    assert [each.name for each in in_order([last, first])] == ["first", "right", "left", "last"]
    with _open(config) as context:
        ensure(context, [left, last])
        ensure(context, [last])
    assert calls == ["first", "left", "right", "last"]
    manifest = read_manifest(config.folder / "last")
    assert manifest is not None and manifest["made_from"] == {"stages": [right.key, left.key]}


def test_a_key_changes_with_the_keys_of_what_is_read_and_not_with_the_work() -> None:
    first = Toy("first", {"a": 1})
    last = Toy("last", {}, read_stages=(first,))
    assert replace(last, work=print).key == last.key
    assert Toy("last", {}, read_stages=(Toy("first", {"a": 2}),)).key != last.key


def test_a_result_is_read_back_fresh_or_once_a_process(config: Config) -> None:
    stage = Toy("stage", {}, _writes([]))
    with _open(config) as context:
        ensure(context, [stage])
        assert stage.result(context) == config.folder / "stage"
        assert stage.cached_result(context) is stage.cached_result(context)
