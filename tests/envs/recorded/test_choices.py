"""No choice in silence: the split, the parts of the state, columns that are left out, and which instruction is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.inspection import described, inspect
from envs.recorded.splitting import SplitRule, describe, in_words, split
from envs.specs import STATE
from tests.envs.recorded.writers import Recording, as_zarr, lerobot, walk

# -- the split ---------------------------------------------------------------------------------------------------------


def labelled(tasks: list[int], length: int = 10) -> tuple[list[int], list[str]]:
    return [length] * len(tasks), [f"task {task}" for task in tasks for _ in range(length)]


@pytest.mark.parametrize("tasks", [
    [each // 2 for each in range(20)], [each // 5 for each in range(30)], [0] * 12 + [1] * 3, [each % 3 for each in range(33)],
    [0] * 19 + [1], list(range(15)), [0] * 10,
])  # fmt: skip
def test_no_task_is_measured_that_is_not_trained_on(tasks: list[int]) -> None:
    episodes, labels = labelled(tasks)
    try:
        found = split(episodes, labels)
    except ValueError as error:
        assert len(set(tasks)) == len(tasks) and "no frame is for" in str(error)  # each task once: none can be kept back
        return
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(10 * len(tasks)))
    of = {name: {labels[frame] for frame in frames} for name, frames in found.items()}
    assert of["test"] <= of["train"] and of["validation"] <= of["train"]
    often = {f"task {task}" for task in set(tasks) if tasks.count(task) >= 5}
    assert often <= of["test"]
    whole = {name: set((frames // 10).tolist()) for name, frames in found.items()}
    assert not whole["train"] & whole["test"] and not whole["train"] & whole["validation"]


def test_the_split_is_spread_over_time_and_can_be_chosen() -> None:
    found = split([10] * 20)
    assert found["test"].mean() == pytest.approx(100, abs=12) and np.ptp(found["test"]) > 90
    assert split([10] * 20, rule=SplitRule("end"))["test"].tolist() == list(range(180, 200))
    assert len(split([10] * 20, rule=SplitRule(test=0.3))["test"]) == 60
    chosen = split([10] * 20, rule=SplitRule(test_episodes=(3, 17)))
    assert set((chosen["test"] // 10).tolist()) == {3, 17}
    with pytest.raises(ValueError, match="split.test: got 0.9"):
        SplitRule(test=0.9)
    with pytest.raises(ValueError, match=r"split.test_episodes: got \[20\], expected numbers within 0 .. 19"):
        split([10] * 20, rule=SplitRule(test_episodes=(20,)))


def test_everything_in_one_episode_is_cut_where_the_task_changes() -> None:
    labels = ["lift"] * 150 + ["place"] * 250
    found = split([400], labels)
    for name, frames in found.items():
        assert {labels[frame] for frame in frames} == {"lift", "place"}, name
    assert 30 <= len(found["test"]) <= 60 and np.ptp(found["test"]) > 200


def test_frames_that_are_not_used_are_in_no_part() -> None:
    usable = np.ones(200, bool)
    usable[50:60], usable[133] = False, False
    assert not set(np.concatenate(list(split([10] * 20, None, usable).values())).tolist()) & {*range(50, 60), 133}


def test_a_split_is_told_in_words_and_numbers() -> None:
    episodes, labels = labelled([each // 2 for each in range(20)])
    told: dict[str, Any] = describe(split(episodes, labels), episodes, labels, SplitRule())
    assert told["test_set"]["frames"] == 20 and len(told["test_set"]["episodes"]) == 2 and len(told["tasks_not_measured"]) == 8
    assert "spread over tasks and time" in in_words(told) and "trained on, not measured" in in_words(told)
    assert "--split.test" in in_words(told)


# -- states, instructions ----------------------------------------------------------------------------------------------


def two_tasks() -> Recording:
    return walk(10, 8, tasks=tuple(each % 2 for each in range(10)), words=("open the drawer", "close the drawer"))


def test_tasks_are_told_and_one_of_them_can_be_chosen(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = lerobot(tmp_path / "set", two_tasks())
    recorded = open_recorded(path)
    assert recorded.tasks() == {"close the drawer": 40, "open the drawer": 40}
    assert any("2 tasks, by the instruction" in line for line in recorded.opened_as())
    one = open_recorded(path, instructions=["open the drawer"])
    assert one.tasks() == {"open the drawer": 40}
    chosen = np.concatenate(list(one.split().values()))
    assert set(one.instructions(chosen)) == {"open the drawer"} and len(chosen) == 40
    assert one.fingerprint() != recorded.fingerprint()
    with pytest.raises(ValueError, match="'open the draw' is not among .* Did you mean 'open the drawer'"):
        open_recorded(path, instructions=["open the draw"])


def test_an_episode_can_be_left_out_and_is_then_not_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    made = two_tasks()
    made.states[3][2, 0] = np.nan
    path = lerobot(tmp_path / "set", made)
    with pytest.raises(ValueError, match=r"NaN or infinity in frame 26 \(episode 3, step 2\).*\(--leave-out 3\)"):
        open_recorded(path)
    recorded = open_recorded(path, leave_out=[3])
    assert not set(range(24, 32)) & set(np.concatenate(list(recorded.split().values())).tolist())
    with pytest.raises(ValueError, match=r"leave_out: got episodes \[10\], expected numbers within 0 .. 9"):
        open_recorded(path, leave_out=[10])


def test_what_the_state_is_made_of_is_told_and_a_column_is_added_to_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    made, extra = walk(3, 12), [np.full((12, 2), 7.0).tolist()] * 3
    feature = {"dtype": "float32", "shape": [2], "names": ["u", "v"]}
    path = lerobot(tmp_path / "set", made, columns={"observation.force": (feature, extra)}, names={"motors": ["a", "b"]})
    added = open_recorded(path, {"observation.force": STATE})
    assert added.state_names == ("a", "b", "u", "v") and added.parts[STATE] == (STATE, "observation.force")
    assert any("4 numbers of observation.state + observation.force: a, b, u, v" in line for line in added.opened_as())
    instead = open_recorded(path, {"observation.force": STATE, STATE: ""})
    assert instead.state_names == ("u", "v")
    ordered = open_recorded(path, {"observation.force": STATE, STATE: STATE})
    assert ordered.state_names == ("u", "v", "a", "b")
    assert added.fingerprint() != ordered.fingerprint()


def test_a_state_that_lies_in_several_columns_is_told_with_how_to_join_them(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    feature = {"dtype": "float32", "shape": [1], "names": ["g"]}
    path = lerobot(tmp_path / "set", walk(3, 12), columns={f"{STATE}.gripper": (feature, [np.zeros((12, 1)).tolist()] * 3)})
    recorded = open_recorded(path, {STATE: ""})
    with pytest.raises(ValueError, match=r"was not recorded; .* joined: --names observation.state.gripper=observation.state"):
        recorded.only([STATE])
    assert open_recorded(path, {STATE: "", f"{STATE}.gripper": STATE}).features == {STATE: (1,)}


@pytest.mark.parametrize("names", [
    ["a", "b"], {"motors": ["a", "b"]}, {"left": ["a"], "right": ["b"]}, {"b": 1, "a": 0}, [["a"], ["b"]],
    {"axes": {"arm": ["a"], "hand": ["b"]}},
])  # fmt: skip
def test_names_may_be_nested(tmp_path: Path, names: object) -> None:
    pytest.importorskip("pyarrow")
    assert open_recorded(lerobot(tmp_path / "set", walk(2, 12), names=names)).state_names == ("a", "b")


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_what_is_looked_over_is_told_as_json(tmp_path: Path) -> None:
    import json

    pytest.importorskip("zarr")
    made = walk(5, 12, images=tuple(np.full((12, 4, 4, 3), 100, np.uint8) for _ in range(5)))
    for episode in made.states:
        episode[:, 1] = 0.25
    made.states[1][6, 0] = 500.0
    told = inspect(open_recorded(as_zarr(tmp_path / "set", made)), 2)
    assert json.loads(json.dumps(told)) is not None
    assert told["ranges"][STATE][1] | {"low_frame": 0, "high_frame": 0} == {
        "name": "state_1", "low": 0.25, "high": 0.25, "low_frame": 0, "high_frame": 0}  # fmt: skip
    assert told["constant"][STATE] == ["state_1"] and told["outliers"][0]["first"] == 18
    assert told["ranges"][STATE][0]["high"] < 1.1 and told["ranges"][STATE][0]["high_frame"] != 18
    assert told["episode_frames"] == {"least": 12, "median": 12.0, "most": 12}
    assert described(open_recorded(as_zarr(tmp_path / "again", made)))["dt_s"] == pytest.approx(0.1)
