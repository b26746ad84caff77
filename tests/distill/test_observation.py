"""What the policies of a run see: defaults that change nothing, errors, keys, and when cameras are looked through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import envs
from distill.checks import validate
from distill.config import Config, ObservationConfig
from distill.evaluation.histories import History, stacked
from distill.evaluation.rollouts import make_env_pool
from distill.graphs.run import run_graph
from distill.hypotheses.cache import CachePlan, HypothesisDataset, draw_hypotheses, hypothesis_seeds, write_index, write_shards
from distill.observation import camera_sources, cameras_for, observation_of
from distill.worlds import open_world
from envs.cameras.specs import CAMERAS, CameraSettings
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from teachers.contract import FEATURES
from teachers.networks.observations import fake_observation

ROBOT = ("tool_x_m", "tool_y_m", "tool_z_m", "finger_m")
SEEING = ObservationConfig(sources=("state", "images", "depth", "points"), state_names=ROBOT)


def _config(**changes: Any) -> Config:
    return Config(task="detour", observation=replace(SEEING, **changes))


# -- the section -------------------------------------------------------------------------------------------------------


def test_the_default_is_the_state_and_no_camera() -> None:
    plain = ObservationConfig()
    assert plain.is_plain and plain.camera_settings() is None and plain.encoder(("a", "b")) is None
    shape = Config().shape(envs.task_spec("avoid"))
    assert shape.encoder is None and camera_sources(shape) == ()


def test_what_is_named_is_seen_and_recorded() -> None:
    encoder, settings = SEEING.encoder(envs.task_spec("detour").state_names), SEEING.camera_settings()
    assert encoder is not None and settings is not None
    views = [f"{kind}.{camera}" for kind in (IMAGES, DEPTH) for camera in ("front", "wrist")]
    assert encoder.sources == (STATE, *views, POINTS)
    assert encoder.state_names == ROBOT and settings.cameras == CAMERAS  # a cloud is fused from all
    only = replace(SEEING, sources=("depth",), state_names=()).camera_settings()
    assert only == CameraSettings(cameras=("front", "wrist"), images=False, num_points=0)


def test_a_part_of_the_state_needs_no_camera() -> None:
    config, spec = _config(sources=("state",)), envs.task_spec("detour")
    validate(config)
    assert config.observation.camera_settings() is None and camera_sources(config.shape(spec)) == ()
    encoder = config.shape(spec).encoder
    assert encoder is not None and encoder.sources == (STATE,) and encoder.state_names == ROBOT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("sate", "points")}, r"observation.sources: unknown 'sate'; .* Did you mean 'state'\?"),
        ({"sources": ()}, "observation.sources: got none"),
        ({"sources": ("points", "points")}, "observation.sources: got a name twice"),
        ({"sources": ("points",)}, "observation.state_names: got .* but the state is not among"),
        ({"state_names": ("tool_x",)}, r"observation.state_names: unknown 'tool_x'; .* Did you mean 'tool_x_m'\?"),
        ({"cameras": ("fornt",)}, r"observation.cameras: unknown 'fornt'; .* Did you mean 'front'\?"),
        ({"cameras": ()}, "observation.cameras: got none, but"),
        ({"image_size": (8, 64)}, "observation.image_size"),
        ({"num_points": 0}, "observation.num_points: got 0, expected at least 1"),
        ({"sources": ("images",), "state_names": (), "colours": True}, "observation.colours: only point clouds"),
        ({"channels": 20}, "observation.channels: got 20"),
        ({"dropout": 1.0}, "observation.colour|observation.dropout"),
        ({"point_jitter_m": -1.0}, "observation.point_jitter_m: got -1.0"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(_config(**changes))


def test_rivals_keep_their_teachers_encoder() -> None:
    config = _config(frozen=False)
    student = replace(config.student, objectives=("chamfer", "reflow"))
    with pytest.raises(ValueError, match="reflow keeps its teacher's encoder; leave observation.frozen at true"):
        validate(replace(config, student=student))


# -- keys --------------------------------------------------------------------------------------------------------------

KEYS = {"demos": "a6155d2c", "starts": "0323cbab", "train/teacher": "80e842e3"}
"""Of the default config, as they were before there were cameras."""


def _keys(config: Config) -> dict[str, str]:
    return {stage.name: stage.key for stage in run_graph(config, open_world(config)).stages}


def _changed(before: Config, after: Config) -> set[str]:
    first, second = _keys(before), _keys(after)
    return {name for name in first if first[name] != second[name]}


def test_keys_of_who_sees_the_state_are_what_they_were() -> None:
    """Frozen: whoever changes them makes all finished runs be made again, knowingly."""
    keys = _keys(Config())
    assert {name: keys[name][:8] for name in KEYS} == KEYS
    for stage in run_graph(Config(), open_world(Config())).stages:
        assert not {"cameras", "encoder", "encoder_frozen"} & set(stage.made_from), stage.name
    # settings that a plain observation does not heed
    assert _keys(Config(observation=ObservationConfig(num_points=7, frozen=False, dropout=0.5))) == keys


def test_a_change_of_what_is_seen_makes_again_what_depends_on_it() -> None:
    base = _config()
    every = set(_keys(base))
    assert _changed(Config(task="detour"), base) == every
    assert _changed(base, _config(num_points=100)) == every
    assert _changed(base, _config(dropout=0.3)) == every - {"demos", "starts"}
    assert _changed(base, _config(state_names=ROBOT[:3])) == every - {"demos", "starts"}
    kept = {"demos", "starts", "train/teacher", "teach", "sample", "reference"}
    kept |= {name for name in every if name.startswith(("evaluate/teacher", "evaluate/nearest"))}
    assert _changed(base, _config(frozen=False)) == every - kept


# -- histories -----------------------------------------------------------------------------------------------------------


def test_cameras_are_looked_through_only_for_frames_that_are_asked_for() -> None:
    env = make_env_pool("detour", CameraSettings(cameras=("wrist",), width=16, height=16, num_points=0, depth=False), 1)[0]
    looks: list[int] = []
    observe = env.observe_cameras
    env.observe_cameras = lambda: looks.append(env._steps) or observe()  # type: ignore[func-returns-value,method-assign]
    history = History(env, 2, lambda step: step % 4 == 0)
    observation, _ = env.reset(seed=0)
    states, views = [observation[STATE]], [observe()]
    history.add(observation, 0)
    first = history.window()
    assert first[STATE].shape == (2, 7) and (first[STATE][0] == first[STATE][1]).all()
    assert np.array_equal(first[f"{IMAGES}.wrist"], [views[0][f"{IMAGES}.wrist"]] * 2)
    for step in range(1, 9):
        observation = env.step(np.array([0.5, 0.1, 0.2, 0.04]))[0]
        assert set(observation) == {STATE}
        history.add(observation, step)
        states.append(observation[STATE])
        views.append(observe())
    assert looks == [0, 3, 4, 7, 8]
    window = stacked([history, history])
    assert window[STATE].shape == (2, 2, 7) and np.array_equal(window[STATE][1], np.stack(states[-2:]))
    assert np.array_equal(window[f"{IMAGES}.wrist"][0], np.stack([view[f"{IMAGES}.wrist"] for view in views[-2:]]))
    env.close()


def test_a_policy_is_given_the_cameras_it_sees_and_refused_without(seeing_shape) -> None:
    settings = CameraSettings(width=24, height=16, num_points=32, colours=True)
    assert cameras_for(replace(seeing_shape, encoder=None), settings) is None
    assert cameras_for(seeing_shape, settings) == settings
    with pytest.raises(ValueError, match="no cameras were given"):
        cameras_for(seeing_shape, None)
    with pytest.raises(ValueError, match="these settings give no"):
        cameras_for(seeing_shape, replace(settings, depth=False))


# -- features in the cache -----------------------------------------------------------------------------------------------


def test_features_in_the_cache_are_those_that_the_teacher_makes(make_teacher, seeing_shape, tmp_path) -> None:
    teacher = make_teacher(encoder=seeing_shape.encoder)
    frames = np.arange(0, 14, 2)
    seen = {name: value.numpy() for name, value in fake_observation(seeing_shape, 14).items()}
    plan = CachePlan(frames, num_hypotheses=3, num_steps=2, shard_size=4, batch_size=2, seed=5)
    cpu = torch.device("cpu")

    def observe(chosen: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value[chosen] for name, value in seen.items()}

    write_shards(tmp_path, teacher, teacher.normaliser, plan, observe, range(plan.num_shards), cpu)
    write_index(tmp_path, plan, "a teacher", "its key")
    batch = HypothesisDataset(tmp_path, features_of="its key", frames=True).batch(range(len(frames)))
    assert batch["frame_index"].tolist() == frames.tolist() and not any(name.startswith(IMAGES) for name in batch)
    observation = {name: torch.from_numpy(value) for name, value in observe(frames).items()}
    with torch.no_grad():
        features = teacher.features(observation)
    torch.testing.assert_close(batch[FEATURES], features)
    assert set(observation_of(batch)) == {FEATURES}
    raw = draw_hypotheses(teacher, observation, hypothesis_seeds(5, frames, 3), 2, cpu)
    torch.testing.assert_close(batch["hypotheses"], teacher.normaliser.normalise_action(raw), atol=2e-3, rtol=2e-3)
    assert set(HypothesisDataset(tmp_path).batch([0])) == {STATE, "hypotheses", "seed"}
    with pytest.raises(ValueError, match="holds features of the teacher its key, expected those of another"):
        HypothesisDataset(tmp_path, features_of="another")
