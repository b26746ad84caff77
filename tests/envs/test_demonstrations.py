"""Recording, windows against a plain loop, what is written is read back, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.demonstrations import Demonstration, Demonstrations, windows
from envs.panda.recording import record, stored_starts


@pytest.fixture(scope="module")
def recorded() -> Demonstrations:
    """Two handles episodes and their exact spec."""
    env = envs.make("handles")
    start = stored_starts("handles", 0, "train", 1)[0]
    episodes = [record(env, start, mode, seed) for seed, mode in enumerate(("left", "right"))]
    return Demonstrations.from_episodes(env.spec_task, [e for e in episodes if e is not None], [0, 0])


def toy() -> Demonstrations:
    """Episodes of 3 and 2 frames whose state and action tell frame and dimension."""
    spec = envs.task_spec("avoid")
    episodes = []
    for first, length, mode in ((0, 3, "L-C-2"), (3, 2, "R-R-4")):
        frame = np.arange(first, first + length, dtype=np.float32)
        episodes.append(
            Demonstration(
                state=np.stack([frame, frame + 100], axis=1),
                action=np.stack([frame + 200, frame + 300], axis=1),
                tool=np.zeros((length, 3), np.float32),
                start=np.array([0.3, 0.0]),
                mode=mode,
            )
        )
    return Demonstrations.from_episodes(spec, episodes, [7, 9])


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_record_succeeds_and_repeats_under_its_seed(task: str) -> None:
    env = envs.make(task)
    mode = env.spec_task.modes[-1]
    start = stored_starts(task, 0, "train", 1)[0]
    one, again, other = (record(env, start, mode, seed) for seed in (5, 5, 6))
    assert one is not None and again is not None and other is not None
    assert one.mode == mode and len(one.state) == len(one.action) == len(one.tool)
    np.testing.assert_array_equal(one.state, again.state)
    assert one.action.shape != other.action.shape or not np.array_equal(one.action, other.action)


def test_record_disturbs_what_is_carried_out_and_not_what_is_recorded() -> None:
    env = envs.make("avoid")
    start = stored_starts("avoid", 0, "train", 1)[0]
    clean, disturbed = (record(env, start, "L-C-2", 0, noise_m=noise) for noise in (0.0, 0.004))
    assert clean is not None and disturbed is not None
    length = min(len(clean.action), len(disturbed.action))
    np.testing.assert_array_equal(clean.action[:length], disturbed.action[:length])
    apart = np.abs(clean.tool[:length] - disturbed.tool[:length]).max()
    assert 0.001 < apart < 0.02


def test_record_does_not_disturb_a_grasp() -> None:
    env = envs.make("detour")
    start = stored_starts("detour", 0, "train", 1)[0]
    clean, disturbed = (record(env, start, "left", 0, noise_m=noise) for noise in (0.0, 0.004))
    assert clean is not None and disturbed is not None
    closed = int(np.flatnonzero(clean.action[:, 3] == 0)[0])
    np.testing.assert_allclose(clean.tool[closed], disturbed.tool[closed], atol=5e-4)
    assert np.abs(clean.tool[closed + 18] - disturbed.tool[closed + 18]).max() > 5e-4


def test_record_gives_none_for_a_failed_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("avoid")
    right = env.plan
    monkeypatch.setattr(env, "plan", lambda mode, rng: right("R-R-4", rng))
    assert record(env, np.array([0.3, 0.0]), "L-L-1", 0) is None  # succeeds, but in another mode
    monkeypatch.setattr(env, "plan", lambda mode, rng: np.array([[0.41, 0.0]], np.float32))
    assert record(env, np.array([0.3, 0.0]), "L-L-1", 0) is None


def test_windows_by_hand() -> None:
    states, actions = windows(toy(), np.array([0, 2, 3]), observation_steps=2, horizon=3)
    assert states.shape == (3, 2, 2) and actions.shape == (3, 3, 2)
    assert states[:, :, 0].tolist() == [[0, 0], [1, 2], [3, 3]]
    assert actions[:, :, 0].tolist() == [[200, 201, 202], [202, 202, 202], [203, 204, 204]]


@pytest.mark.parametrize(("observation_steps", "horizon"), [(1, 1), (2, 16), (4, 100)])
def test_windows_against_a_plain_loop(recorded: Demonstrations, observation_steps: int, horizon: int) -> None:
    frames = np.random.default_rng(0).permutation(recorded.num_frames)
    states, actions = windows(recorded, frames, observation_steps, horizon)
    for row, frame in enumerate(frames):
        mine = np.flatnonzero(recorded.episode_index == recorded.episode_index[frame])
        for o in range(observation_steps):
            np.testing.assert_array_equal(
                states[row, o], recorded.state[max(mine[0], frame - (observation_steps - 1 - o))]
            )
        for t in range(horizon):
            np.testing.assert_array_equal(actions[row, t], recorded.action[min(mine[-1], frame + t)])


def test_windows_refuse_frames_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="within 0 .. 4"):
        windows(toy(), np.array([5]), 1, 1)


def test_saved_is_what_is_loaded(recorded: Demonstrations, tmp_path: Path) -> None:
    recorded.save(tmp_path)
    loaded = Demonstrations.load(tmp_path, envs.task_spec("handles"))
    assert loaded.spec == recorded.spec and loaded.task == "handles"
    for name in ("state", "action", "tool", "episode_index", "episode_mode", "episode_start", "start_index"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(recorded, name))
        assert getattr(loaded, name).dtype == getattr(recorded, name).dtype
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["episodes_per_mode"] == {"left": 1, "right": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.safetensors", "info.json", "statistics.json"]


def test_statistics_by_hand(tmp_path: Path) -> None:
    numbers = toy().statistics()
    assert numbers["state"]["min"].tolist() == [0, 100] and numbers["state"]["max"].tolist() == [4, 104]
    assert numbers["action"]["mean"].tolist() == [202, 302]
    np.testing.assert_allclose(numbers["action"]["std"], np.sqrt(2.0))  # of 0, 1, 2, 3, 4
    toy().save(tmp_path)
    assert json.loads((tmp_path / "statistics.json").read_text())["action"]["mean"] == [202, 302]


def test_loading_refuses_another_task_a_changed_task_and_another_schema(tmp_path: Path) -> None:
    toy().save(tmp_path)
    with pytest.raises(ValueError, match="of task 'avoid', wanted 'detour'"):
        Demonstrations.load(tmp_path, envs.task_spec("detour"))
    with pytest.raises(ValueError, match="dt_s.*record again"):
        Demonstrations.load(tmp_path, replace(envs.task_spec("avoid"), dt_s=7.0))
    # how long a rollout may take does not change what was shown
    assert Demonstrations.load(tmp_path, replace(envs.task_spec("avoid"), max_steps=7)).spec.max_steps == 7
    info = json.loads((tmp_path / "info.json").read_text())
    (tmp_path / "info.json").write_text(json.dumps({**info, "num_frames": 6}))
    with pytest.raises(ValueError, match="counts"):
        Demonstrations.load(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version is 99"):
        Demonstrations.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"state": d.state[:, :1]}, r"state of task 'avoid' must be \(5, 2\)"),
        (lambda d: {"action": d.action.astype(np.float64)}, "action of task 'avoid' must be .* float32"),
        (lambda d: {"action": np.where(d.action == 202, np.nan, d.action)}, "action of task 'avoid' has values"),
        (lambda d: {"episode_index": np.array([0, 0, 1, 0, 1])}, "episode_index"),
        (lambda d: {"episode_index": np.zeros(5, np.int64)}, "episode_index"),
        (lambda d: {"episode_mode": np.array([0, 24])}, "episode_mode must be in 0 .. 23"),
        (lambda d: {"start_index": np.zeros(3, np.int64)}, "start_index"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        replace(toy(), **change(toy()))


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_starts_repeat_differ_between_splits_and_grow_by_appending(task: str) -> None:
    env = envs.make(task)
    train, validation, test = (stored_starts(task, 0, split, 50) for split in ("train", "validation", "test"))
    np.testing.assert_array_equal(train, stored_starts(task, 0, "train", 50))
    np.testing.assert_array_equal(train[:10], stored_starts(task, 0, "train", 10))
    together = np.concatenate([train, validation, test, stored_starts(task, 1, "train", 50)])
    assert together.dtype == np.float64 and len(np.unique(together, axis=0)) == 200
    assert (together >= env.start_low).all() and (together <= env.start_high).all()
    with pytest.raises(ValueError, match="split must be one of"):
        stored_starts(task, 0, "dev", 1)
