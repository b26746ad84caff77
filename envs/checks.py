"""A conformance checker for your own environments: it tests everything that rollouts rely on."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.cameras.specs import check_camera_features
from envs.specs import FAILURES, SIMULATOR_FAILURES, STATE, TaskSpec


def check_env(env: Any, *, starts: int = 3, seed: int = 0) -> None:
    """Checks that `env` fulfils the contract of `PandaEnv`, without having to inherit from it. Raises ValueError.

    Checked: spaces, shapes, dtypes, refused inputs, info, that a start reproduces its observation, and that the plan of every
    mode leads to that mode from `starts` sampled starts. With cameras (`env.camera_rig.spec`, see envs.cameras.specs) every
    observation must hold the features that this spec names.
    """
    spec: TaskSpec = env.spec_task
    size, box = len(spec.state_names), env.action_space
    _require(STATE in env.observation_space.spaces, f"observation_space must be a Dict with {STATE!r}")
    _require(env.observation_space[STATE].shape == (size,), f"{STATE} must be [{size}] as the spec's state_names")
    _require(box.shape == (spec.action.size,), f"action_space must be [{spec.action.size}], got {box.shape}")
    _require(
        np.allclose(box.low, spec.action.low) and np.allclose(box.high, spec.action.high),
        f"action_space must be the spec's box {spec.action.low} .. {spec.action.high}, got {box.low} .. {box.high}",
    )
    for bad in (np.zeros(len(spec.start_names) + 1), np.full(len(spec.start_names), np.nan)):
        _refuses(lambda bad=bad: env.reset(options={"start": bad}), f"reset must refuse the start {bad}")
    start = np.asarray(env.sample_start(np.random.default_rng(seed)))
    _require(
        start.shape == (len(spec.start_names),) and start.dtype == np.float64,
        f"sample_start must give [{len(spec.start_names)}] float64, got {start.shape} {start.dtype}",
    )
    env.reset(seed=seed)
    for bad in (np.zeros(spec.action.size + 1), np.full(spec.action.size, np.nan)):
        _refuses(lambda bad=bad: env.step(bad), f"step must refuse the action {bad}")
    _refuses(lambda: env.plan("no such mode", np.random.default_rng(0)), "plan must refuse an unknown mode")
    rng = np.random.default_rng(seed)
    for _ in range(starts):
        start = env.sample_start(rng)
        for mode in spec.modes:
            first = _observed(env, env.reset(options={"start": start})[0], "reset")
            again = _observed(env, env.reset(options={"start": start})[0], "reset")
            both = f"{first[STATE]} and {again[STATE]}"
            _require(np.array_equal(first[STATE], again[STATE]), f"the start {start} gave two states, {both}")
            differ = [key for key, values in first.items() if not np.array_equal(values, again[key])]
            _require(not differ, f"the start {start} was observed twice and not the same: {differ}")
            _check_episode(env, mode, rng)


def _check_episode(env: Any, mode: str, rng: np.random.Generator) -> None:
    """Executes one plan and checks what every step returns and where the episode ends."""
    spec: TaskSpec = env.spec_task
    plan = env.plan(mode, rng)
    _require(
        plan.ndim == 2 and plan.shape[1] == spec.action.size and plan.dtype == np.float32 and np.isfinite(plan).all(),
        f"plan({mode!r}) must be finite float32 [L, {spec.action.size}], got {plan.dtype} {plan.shape}",
    )
    for step in range(spec.max_steps):
        observation, reward, terminated, truncated, info = env.step(plan[min(step, len(plan) - 1)])
        _observed(env, observation, "step")
        _require({"is_success", "failure", "mode"} <= set(info), f"info lacks is_success, failure or mode: {info}")
        failures = (*FAILURES, *SIMULATOR_FAILURES)
        _require(info["failure"] in ("", *failures), f"failure must be '' or in {failures}, got {info['failure']!r}")
        _require(info["mode"] in ("", *spec.modes), f"mode must be '' or one of the spec's, got {info['mode']!r}")
        _require(float(reward) == float(info["is_success"]), f"reward must be 1 on success, else 0; got {reward}")
        ended = info["is_success"] or info["failure"] != ""
        _require(ended == (terminated or truncated), f"an episode must end with success or a failure's name: {info}")
        _require(np.shape(env.tool_position()) == (3,), "tool_position must be [3]")
        if terminated or truncated:
            _require(info["is_success"] and info["mode"] == mode, f"the plan of mode {mode!r} ended in {info}")
            return
    raise ValueError(f"the episode went on after max_steps={spec.max_steps} steps; it must end with 'timeout'")


def _observed(env: Any, observation: Any, where: str) -> dict[str, np.ndarray]:
    camera_rig = getattr(env, "camera_rig", None)
    if camera_rig is not None:  # first, as its errors say what is wrong
        check_camera_features(observation, camera_rig.spec)
    _require(env.observation_space.contains(observation), f"{where} gave an observation outside observation_space")
    return {key: np.asarray(values) for key, values in observation.items()}


def _refuses(call: Any, what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise ValueError(f"{what} with a ValueError")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
