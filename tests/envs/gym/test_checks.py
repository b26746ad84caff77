"""The checker says everything that is wrong with an environment, and what it is like."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.cli.main import main
from envs.gym.checks import check_world
from envs.gym.settings import GymSettings
from tests.envs.gym.conftest import MAPPING

Point = Callable[..., GymSettings]


def test_a_right_world_has_nothing_wrong(point: Point) -> None:
    found = check_world(point(), starts=2)
    assert found.problems == []
    facts = dict(line.split(": ", 1) for line in found.facts)
    assert facts["repeatable"].startswith("yes") and facts["clips"] == "frames of 32 x 24 pixels"
    assert facts["state"] == "3 numbers: x_m, y_m, goal_m" and facts["action"].startswith("1 numbers from -1 to 1, every 0.1 s")
    assert facts["expert"].startswith("2 solved (left), 2 solved (right) of 4") and facts["expert"].endswith("8 to 8 steps")
    assert facts["cloud"].startswith("(20, 3) float32, -1 to 1")


def test_everything_wrong_is_listed(point: Point) -> None:
    settings = point("deaf=true", mapping=MAPPING.replace("info.is_success", "info.is_sucess").replace("info.far", "info.fra"))
    clumsy = settings.expert.replace(":expert", ":clumsy")
    found = check_world(point("deaf=true", mapping=_text(settings), expert=clumsy), starts=2)
    assert len(found.problems) == 4
    assert "reset(seed=1) gave two different states" in found.problems[0]
    assert "success: info has no 'is_sucess'" in found.problems[1] and "Did you mean 'is_success'?" in found.problems[1]
    assert "score: info has no 'fra'" in found.problems[2]
    assert "expert: it solves none of 2 episodes" in found.problems[3] and "task_failed" in found.problems[3]


def _text(settings: GymSettings) -> str:
    with open(settings.mapping) as file:
        return file.read()


def test_an_environment_that_cannot_be_opened_is_said_and_nothing_else(point: Point) -> None:
    found = check_world(point("wrong=1"))
    assert len(found.problems) == 1 and "unexpected keyword argument 'wrong'" in found.problems[0] and found.facts == []


def test_one_that_dies_is_said(point: Point) -> None:
    found = check_world(point("fails=dies", expert=""))
    assert any("fails with random actions: crash" in line for line in found.problems)


def test_the_command_prints_it_and_exits_with_one(point: Point, capsys: pytest.CaptureFixture[str]) -> None:
    settings = point()
    flags = ["--world.gym", settings.gym, "--world.mapping", settings.mapping, "--world.expert", settings.expert]
    assert main(["check-world", *flags, "--starts", "1"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["check-world", *flags, "--world.make", "deaf=true", "--starts", "1"]) == 1
    told = capsys.readouterr().out
    assert "wrong: starts: reset(seed=1)" in told and "1 to put right" in told


def test_the_command_needs_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-world"]) == 2
    assert "world.gym: got none" in capsys.readouterr().err
    assert main(["check-world", "--help"]) == 0
    assert "--world.mapping" in capsys.readouterr().out
