"""The mapping file: what it says, and that everything wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.gym.mapping import Mapping, Score, Success, read_mapping

FULL = """\
imports: [some_package]
state: {agent.xy: [x_m, y_m], goal: [goal_m]}
images: {front: picture, wrist: render}
depth: {front: depth}
points: cloud
success: info.far >= 0.5
score: max reward
hold: 3
action: {names: [dx], scale: [2], offset: 1, weights: [0.5]}
modes: {info: side, names: [left, right]}
tool: [x_m, y_m]
dt_s: 0.1
max_steps: 8
summary: Pass an obstacle.
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mapping.yaml"
    path.write_text(text)
    return path


def test_a_mapping_says_what_every_key_is(tmp_path: Path) -> None:
    assert len(FULL.splitlines()) <= 20
    assert read_mapping(written(tmp_path, FULL)) == Mapping(
        success=Success("info.far", ">=", 0.5), state=(("agent.xy", ("x_m", "y_m"), ()), ("goal", ("goal_m",), ())),
        imports=("some_package",), images=(("front", "picture"), ("wrist", "render")), depth=(("front", "depth"),),
        points="cloud", score=Score("max", "reward"), hold=3, action_names=("dx",), scale=(2.0,), offset=(1.0,),
        weights=(0.5,), mode_key="side", modes=("left", "right"), tool=("x_m", "y_m"), dt_s=0.1, max_steps=8,
        summary="Pass an obstacle.",
    )  # fmt: skip


@pytest.mark.parametrize(("state", "expected"), [
    ("observation", (("observation", (), ()),)),
    ("[a, b]", (("a", (), ()), ("b", (), ()))),
    ("{a: {x: 3, y: 0}}", (("a", ("x", "y"), (3, 0)),)),
])  # fmt: skip
def test_a_state_is_a_key_several_or_some_of_their_numbers(tmp_path: Path, state: str, expected: Any) -> None:
    assert read_mapping(written(tmp_path, f"state: {state}\nsuccess: terminated")).state == expected


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = ("stat: observation\nsuccess: rewrd >= 1\nimages: {frnt: picture}\nhold: 0\ndt_s: -1\nmodes: {info: side}\n"
            "score: best reward")  # fmt: skip
    with pytest.raises(ValueError) as caught:
        read_mapping(written(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert "unknown key 'stat'. Did you mean 'state'?" in lines[0]
    assert "success: got 'rewrd >= 1', expected info.<key>" in lines[1]
    assert "Did you mean 'front'?" in lines[2]
    assert "hold: got 0, expected a whole number above 0" in lines[3] and "dt_s: got -1" in lines[4]
    assert "modes: got" in lines[5] and "score: got 'best reward'" in lines[6] and "state is missing" in lines[7]


@pytest.mark.parametrize("text", ["- a list", "state: [", "nothing"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mapping.yaml"):
        read_mapping(written(tmp_path, text))


@pytest.mark.parametrize("text", ["reward", "terminated >= 1", "info", "import os", "reward >= high", "return > 1 or True"])
def test_success_is_one_of_a_few_forms_and_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match="success: got"):
        Success.parse(text)


@pytest.mark.parametrize(("text", "step", "holds"), [
    ("info.is_success", (0.0, 0.0, False, False, {"is_success": 1.0}), True),
    ("info.is_success", (0.0, 0.0, False, False, {}), False),
    ("info.a.b < 0.5", (0.0, 0.0, False, False, {"a.b": 0.25}), True),
    ("reward >= 0.95", (0.95, 0.0, False, False, {}), True),
    ("reward > 0.95", (0.95, 0.0, False, False, {}), False),
    ("return <= -3", (0.0, -3.5, False, False, {}), True),
    ("terminated", (0.0, 0.0, True, False, {}), True),
    ("survived", (0.0, 0.0, False, True, {}), True),
    ("survived", (0.0, 0.0, True, True, {}), False),
])  # fmt: skip
def test_success_holds(text: str, step: tuple[float, float, bool, bool, dict[str, Any]], holds: bool) -> None:
    assert Success.parse(text).holds(*step) is holds


def test_a_score_is_the_largest_the_last_or_the_sum() -> None:
    scores = {}
    for how in ("max", "last", "sum"):
        score, value = Score.parse(f"{how} reward"), None
        for reward in (0.5, 2.0, -1.0):
            value = score.after(value, reward, {})
        scores[how] = value
    assert scores == {"max": 2.0, "last": -1.0, "sum": 1.5}
    assert Score.parse("max info.coverage").after(None, 9.0, {"coverage": 0.25}) == 0.25
    assert Score.parse("max info.coverage").after(0.5, 9.0, {}) == 0.5  # a step that does not say it
