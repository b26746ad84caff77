"""How long stages took before, and how progress is told."""

from __future__ import annotations

import os
from pathlib import Path

from distill.runtime.bar import Bar
from distill.runtime.earlier import earlier_seconds
from distill.runtime.progress import Progress, in_words, time_left
from distill.store.manifest import commit, partial_folder
from tests.distill.runtime.test_execution import Toy


def _finished(run: Path, stage: Toy, seconds: float, at: int) -> None:
    partial_folder(run / stage.name, stage.key).mkdir(parents=True)
    (run / ".lock").touch()
    commit(run / stage.name, stage.key, stage.made_from, seconds)
    os.utime(run / stage.name, (at, at))


def test_the_newest_run_with_the_same_settings_tells_how_long_a_stage_takes(tmp_path: Path) -> None:
    def stage(seed: int, steps: int, key: str) -> Toy:
        return Toy("train/one", {"seed": seed, "config": {"steps": steps, "seed": seed}, "data": key * 64})

    assert earlier_seconds(tmp_path / "none" / "run", stage(0, 5, "a")) is None
    _finished(tmp_path / "old", stage(1, 5, "b"), 7.0, 100)
    _finished(tmp_path / "new", stage(2, 5, "c"), 9.0, 200)
    _finished(tmp_path / "longer", stage(3, 50, "c"), 90.0, 300)
    assert earlier_seconds(tmp_path / "mine", stage(0, 5, "a")) == 9.0
    assert earlier_seconds(tmp_path / "mine", stage(0, 6, "a")) is None
    # an archived stage counts, a folder without the lock of a run does not
    (tmp_path / "new" / "train" / "one").rename(tmp_path / "new" / "train" / "one.0123abcd")
    assert earlier_seconds(tmp_path / "mine", stage(0, 5, "a")) == 9.0
    (tmp_path / "new" / ".lock").unlink()
    assert earlier_seconds(tmp_path / "mine", stage(0, 5, "a")) == 7.0


def test_progress_counts_stages_and_sums_what_is_known(tmp_path: Path) -> None:
    stages = [Toy(name, {"of": name}) for name in ("a", "b", "c")]
    _finished(tmp_path / "earlier", stages[1], 70.0, 100)
    _finished(tmp_path / "mine", stages[0], 5.0, 100)
    progress = Progress.of(tmp_path / "mine", stages)
    assert progress.estimates == {"b": 70.0, "c": None}
    assert progress.opening == "3 stages, 1 of them done already; at least 1 min 10 s to go"
    assert (progress.place("b"), progress.place("c", "a")) == ("[2/3]", "[1, 3/3]")
    assert progress.ended("c") == "(0 s so far, about 1 min 10 s to go)"
    assert progress.ended("b") == "(0 s so far)"


def test_times_are_told_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.4, 59.4, 60, 3599, 7300)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"
    ]  # fmt: skip
    assert time_left({"a": 1.0, "b": 2.0}) == "about 3 s" and time_left({"a": 1.0, "b": None}) == "at least 1 s"
    assert time_left({"a": None}) == time_left({}) == ""


def test_a_bar_counts_the_work_of_all_processes(capsys) -> None:
    """Of 480 rollouts this process does 160: after its first 40 of them, 120 are taken for done, and all after its last."""
    with Bar(160, 480, "rollouts", "episode", shown=True) as bar:
        bar.update(40)
        assert bar.bar.n == 120
        bar.advance_to(41)
        assert bar.bar.n == 123
        bar.advance_to(160)
        assert bar.bar.n == 480
    assert "480/480" in capsys.readouterr().err
    with Bar(0, 3, "nothing of mine", "episode", shown=False) as bar:
        bar.advance_to(0)
