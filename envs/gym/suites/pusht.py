"""Push-T (gym-pusht) as a world: which way the pusher goes round the T, and an expert that plans pushes in the simulator.

It runs in the interpreter that has gym-pusht and imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

GOAL = np.array([256.0, 256.0, np.pi / 4])
OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
"""Corners of the T [px] in its own frame, in order."""
CENTRE, AROUND = np.array([0.0, 45.0]), 104.0
"""Of the circle that the pusher keeps to on its way round the T, in the T's frame [px]."""
RADIUS, GAP = 15.0, 4.0
"""Of the pusher, and what it keeps between itself and the T before a push [px]."""
FAST, PUSH = 30.0, 10.0
"""Pixels per action, on the way and while it pushes."""
MOVED = 1.0
"""The T has been touched when it has moved by so much [px]."""


class Ways(gymnasium.Wrapper[Any, Any, Any, Any]):
    """info["way"]: how the pusher went round the T before it touched it first, ``clockwise`` or ``counterclockwise``."""

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's."""
        observation, info = self.env.reset(**given)
        self._first, self._turned, self._angle = _pose(self), 0.0, self._seen()
        return observation, {**info, "way": ""}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As gymnasium's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._angle is not None:
            now = self._seen()
            self._turned += (now - self._angle + np.pi) % (2 * np.pi) - np.pi
            self._angle = None if np.abs(_pose(self)[:2] - self._first[:2]).max() > MOVED else now
        way = "clockwise" if self._turned > 0 else "counterclockwise"  # y points down
        return observation, reward, terminated, truncated, {**info, "way": way}

    def _seen(self) -> Any:
        """The pusher's direction from the T's centre [rad]."""
        away = np.array(self.unwrapped.agent.position) - _to_world(_pose(self), CENTRE)  # type: ignore[attr-defined]
        return float(np.arctan2(away[1], away[0]))


def make(**given: Any) -> gymnasium.Env[Any, Any]:
    """The environment of gym-pusht with `Ways`."""
    import gym_pusht  # noqa: F401 - registers it

    return Ways(gymnasium.make("gym_pusht/PushT-v0", disable_env_checker=True, **given))


def expert(env: Any, mode: str, rng: np.random.Generator) -> Callable[[Any], Any]:
    """Pushes that bring the T nearest to its goal, one after the other; the first is reached by the way that `mode` says."""
    targets = _targets(env, 1.0 if mode == "clockwise" else -1.0, rng)
    return lambda observation: next(targets)


def _targets(env: Any, way: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Where the pusher is sent, action by action [px]. way: of the first approach, 1 or -1; later ones take the shorter."""
    from gym_pusht.envs import PushTEnv

    model = PushTEnv(obs_type="state")
    model.reset(seed=0)
    turn = way
    while True:
        pose, agent = _pose(env), np.array(env.unwrapped.agent.position)
        begin, direction, steps = _best_push(model, pose, rng)
        yield from _approach(agent, begin, pose, turn)
        turn = 0.0
        for count in range(1, steps + 1):
            yield begin + direction * (GAP + PUSH * count)


def _best_push(model: Any, pose: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Start [px], direction and number of actions of the push after which the T is nearest to its goal."""
    now, found = _distance(pose), []
    for point, normal in _contacts():
        for tilt in (-0.35, 0.0, 0.35):
            begin = _to_world(pose, point + normal * (RADIUS + GAP))
            angle = np.arctan2(-normal[1], -normal[0]) + pose[2] + tilt
            direction = np.array([np.cos(angle), np.sin(angle)])
            if not (16 < begin[0] < 496 and 16 < begin[1] < 496):
                continue
            _place(model, begin, pose)
            for count in range(1, 16):
                target = begin + direction * (GAP + PUSH * count)
                if not (5 < target[0] < 507 and 5 < target[1] < 507):
                    break
                _move(model, target)
                after = _distance(_pose(model))
                found.append((after + 0.15 * count, count, begin, direction))
                if after > now + 25:
                    break
    found.sort(key=lambda each: each[0])
    stuck = found[0][0] > now - 1
    _, steps, begin, direction = found[int(rng.integers(min(20, len(found)))) if stuck else 0]
    return begin, direction, steps


def _contacts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points on the T's outline, and the outward normals there, in its frame."""
    for first, second in zip(OUTLINE, np.roll(OUTLINE, -1, 0)):  # noqa: B905 - Python 3.8
        along = second - first
        length = float(np.hypot(*along))
        normal = np.array([along[1], -along[0]]) / length
        for share in np.linspace(0, 1, max(2, int(length // 14)) + 2)[1:-1]:
            yield first + share * along, normal


def _approach(agent: np.ndarray, begin: np.ndarray, pose: np.ndarray, turn: float) -> Iterator[np.ndarray]:
    """From the pusher to the start of a push, round the T. turn: 1 or -1 for the way round, 0: the shorter one."""
    centre = _to_world(pose, CENTRE)
    first, last = (float(np.arctan2(*(point - centre)[::-1])) for point in (agent, begin))
    apart = (last - first + np.pi) % (2 * np.pi) - np.pi
    if turn and np.sign(apart) != turn:
        apart += 2 * np.pi * turn
    yield from _line(agent, _clipped(centre + AROUND * np.array([np.cos(first), np.sin(first)])))
    count = int(np.ceil(abs(apart) * AROUND / FAST))
    for step in range(1, count + 1):
        angle = first + apart * step / count
        yield _clipped(centre + AROUND * np.array([np.cos(angle), np.sin(angle)]))
    yield from _line(_clipped(centre + AROUND * np.array([np.cos(last), np.sin(last)])), begin)
    yield begin


def _line(first: np.ndarray, last: np.ndarray) -> Iterator[np.ndarray]:
    count = int(np.ceil(np.hypot(*(last - first)) / FAST))
    yield from (first + (last - first) * step / count for step in range(1, count + 1))


def _clipped(point: np.ndarray) -> np.ndarray:
    return np.clip(point, 18, 494)


# -- the simulator -----------------------------------------------------------------------------------------------------


def _pose(env: Any) -> np.ndarray:
    """x, y [px] and angle [rad] of the T."""
    block = env.unwrapped.block
    return np.array([*block.position, block.angle])


def _place(model: Any, agent: np.ndarray, pose: np.ndarray) -> None:
    """Pusher and T at rest at these places."""
    model.agent.position, model.agent.velocity = tuple(agent), (0, 0)
    model.block.angle, model.block.angular_velocity = float(pose[2]), 0.0
    model.block.position, model.block.velocity = tuple(pose[:2]), (0, 0)
    model.space.reindex_shapes_for_body(model.block)


def _move(model: Any, target: np.ndarray) -> None:
    """One action of the environment, without its reward, which would take most of the time."""
    for _ in range(int(1 / (model.dt * model.control_hz))):
        agent = model.agent
        acceleration = model.k_p * (target - np.array(agent.position)) - model.k_v * np.array(agent.velocity)
        agent.velocity = tuple(np.array(agent.velocity) + acceleration * model.dt)
        model.space.step(model.dt)


def _distance(pose: np.ndarray) -> float:
    """Mean distance of the T's corners to where they belong [px]."""
    return float(np.linalg.norm(_to_world(pose, OUTLINE) - _to_world(GOAL, OUTLINE), axis=-1).mean())


def _to_world(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points of the T's frame in the world's [px]."""
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    return pose[:2] + points @ np.array([[cosine, sine], [-sine, cosine]])
