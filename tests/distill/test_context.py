"""One run in progress: a stage is done once, goes on where it was left, and a folder belongs to one run at a time."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from pathlib import Path

import pytest

from distill.config import Config
from distill.context import Run, Stage
from distill.store.manifest import partial_folder, read_manifest, verify


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(runs_dir=tmp_path / "runs", name="mine")


def _writes(calls: list[Path], text: str = "x"):
    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "file.txt").write_text(text)

    return work


def test_a_stage_is_done_once_and_then_reused(config: Config, capsys) -> None:
    calls: list[Path] = []
    stage = Stage("some/stage", {"a": 1})
    for _ in range(2):
        with Run.open(config) as run:
            folder = run.stage(stage, _writes(calls))
    assert folder == config.folder / "some/stage" and (folder / "file.txt").read_text() == "x"
    assert calls == [partial_folder(folder, stage.key)]
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["key"] == stage.key and manifest["made_from"] == {"a": 1}
    told = capsys.readouterr().out
    assert told.count("[some/stage] done in") == 1 and told.count("[some/stage] done before, reused") == 1


def test_a_stage_of_other_inputs_is_done_again_and_the_old_one_comes_back(config: Config) -> None:
    calls: list[Path] = []
    with Run.open(config) as run:
        for value in (1, 2, 1, 2, 1):
            folder = run.stage(Stage("stage", {"a": value}), _writes(calls, str(value)))
            assert (folder / "file.txt").read_text() == str(value)
    assert len(calls) == 2


def test_the_key_names_the_stage_too() -> None:
    assert Stage("one", {"a": 1}).key != Stage("two", {"a": 1}).key
    assert Stage("one", {"a": 1}).key == Stage("one", {"a": 1}).key != Stage("one", {"a": 2}).key


def test_what_an_interrupted_stage_left_is_handed_to_the_next_go(config: Config) -> None:
    stage, found = Stage("stage", {}), []

    def interrupted(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Run.open(config) as run:
        run.stage(stage, interrupted)
    assert not (config.folder / "stage").exists()
    with Run.open(config) as run:  # the lock was given back
        folder = run.stage(stage, lambda partial: found.append((partial / "half.txt").read_text()))
    assert found == ["half"] and (folder / "half.txt").read_text() == "half"


def test_the_cost_of_a_stage_is_that_of_all_its_goes(config: Config) -> None:
    stage = Stage("stage", {})

    def burn(folder: Path) -> None:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        (folder / "more.txt").write_text("more")

    def interrupted(folder: Path) -> None:
        burn(folder)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), Run.open(config) as run:
            run.stage(stage, interrupted)
    with Run.open(config) as run:
        manifest = verify(run.stage(stage, burn))
    assert manifest["cpu_seconds"] >= 0.6 and manifest["seconds"] >= 0.6
    assert sorted(path.name for path in (config.folder / "stage").iterdir()) == ["manifest.json", "more.txt"]


def test_a_changed_file_is_refused_and_the_work_not_done_over_it(config: Config) -> None:
    calls: list[Path] = []
    with Run.open(config) as run:
        folder = run.stage(Stage("stage", {}), _writes(calls))
    (folder / "file.txt").write_text("y")
    with Run.open(config) as run, pytest.raises(ValueError, match=r"stage/file\.txt was changed since it was written"):
        run.stage(Stage("stage", {}), _writes(calls))
    assert len(calls) == 1 and (folder / "file.txt").read_text() == "y"


def test_two_cannot_work_in_one_folder(config: Config) -> None:
    with Run.open(config):
        pass
    with (config.folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            ValueError, match="another flow2one is working in .*mine; wait for it.*or use another --name"
        ):
            Run.open(config)
    with Run.open(config):
        pass


def test_measurements_are_logged_a_line_each(config: Config) -> None:
    for step in (1, 2):
        with Run.open(config) as run:
            run.log("teach", {"step": step, "loss": 0.5 / step})
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["loss"]) for line in lines] == [("teach", 1, 0.5), ("teach", 2, 0.25)]
    assert all(line["time"] > 1.6e9 for line in lines)


def test_wandb_asked_for_but_missing_is_said_clearly(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match="wandb was asked for but is not installed; pip install wandb, or --wandb disabled"
    ):
        Run.open(Config(runs_dir=config.runs_dir, name="mine", wandb="offline"))


def test_one_process_has_all_the_work(config: Config) -> None:
    with Run.open(config) as run:
        assert run.is_main and (run.share.rank, run.share.world) == (0, 1)
        assert list(run.my_share(range(5))) == [0, 1, 2, 3, 4] and run.gather([1, 2]) == [1, 2]
        assert run.on_main(lambda: 7) == 7
        with pytest.raises(ValueError, match="no good"):
            run.on_main(lambda: (_ for _ in ()).throw(ValueError("no good")))
