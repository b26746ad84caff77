"""An exported student in a control loop: observations in, actions out, with a deadline if one is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Missed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flow2one_runtime.backends import Graph, WholeCall, open_graphs
from flow2one_runtime.exported import HAS_LAST_PLAN, LAST_PLAN, Exported, Input, read_exported

Observation = Mapping[str, np.ndarray]
"""Raw features by name: of one control step (`[S]`), or of all O (`[O, S]`, the newest last). Further names are ignored."""


class Plan(NamedTuple):
    """A selected chunk. actions_TA: raw. normalised_TA: the same as a whole call's graph returned it; None without one."""

    actions_TA: np.ndarray
    normalised_TA: np.ndarray | None = None


class Student:
    """One exported student and the state of one episode.

    exported: what the folder says. missed: calls of `select_action` whose network evaluation was not ready at the deadline.
    held: those of them that found nothing left of the last plan and repeated its last action. draw: a number N to latents
    `[N, ..]`; replace it to choose them yourself.
    """

    def __init__(
        self, exported: Exported, graph: Graph, deadline_s: float | None = None, seed: int = 0, whole: WholeCall | None = None
    ) -> None:
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s: got {deadline_s}, expected seconds above 0, or None")
        self.exported, self._graph, self._whole, self._deadline_s = exported, graph, whole, deadline_s
        self.missed = self.held = 0
        self._random = np.random.default_rng(seed)
        self.draw: Callable[[int], np.ndarray] = self._standard_draw
        self._pool: ThreadPoolExecutor | None = None
        self.reset()

    @classmethod
    def load(
        cls, folder: Path | str, *, backend: str = "auto", deadline_s: float | None = None, seed: int = 0, threads: int = 1
    ) -> Student:
        """The student in a folder that `flow2one export` wrote.

        backend: auto, onnxruntime, openvino or torch. deadline_s: how long a call of `select_action` may take [s]; None: as
        long as it takes. seed: of the latents. threads: of the backend; small networks gain nothing from more than one.
        Raises ValueError, in one line, for a folder, a file or an argument that is wrong.
        """
        exported = read_exported(folder)
        graph, whole = open_graphs(exported, backend, threads)
        return cls(exported, graph, deadline_s, seed, whole)

    def reset(self) -> None:
        """Start an episode: forget observations, plan and latent. The counters go on."""
        self._history: list[dict[str, np.ndarray]] = []
        self._plan: np.ndarray | None = None
        self._last: Plan | None = None
        self._latent: np.ndarray | None = None
        self._pending: tuple[int, Future[Plan]] | None = None
        self._at = self._step = self._replans = 0

    # -- one call ------------------------------------------------------------------------------------------------------

    def select_action(self, observation: Observation) -> np.ndarray:
        """The action `[A]` of this control step, raw. Call it once per control period, with the newest observation.

        The network is evaluated every `execution_horizon` calls. With a deadline the evaluation runs in a thread; where it is
        not ready in time, the next action of the last plan is returned and `missed` grows. A late chunk is used from the call
        after it is ready, without the actions whose time has passed. The first call of an episode has no plan to fall back to
        and always waits. Raises ValueError for an observation with a wrong shape, NaN or infinity, and for such actions.
        """
        begin = time.monotonic()
        self._observe(observation)
        self._take(0.0)
        if self._pending is None and (self._plan is None or self._at >= self.exported.selection.executed):
            latents, last, done = self._latents(), self._last, self._at
            window = self._window()
            if self._deadline_s is None:
                self._adopt(self._evaluate(window, latents, last, done), 0)
            else:
                self._pool = self._pool or ThreadPoolExecutor(1, "flow2one_runtime")
                self._pending = self._step, self._pool.submit(self._evaluate, window, latents, last, done)
                left_s = max(0.0, self._deadline_s - (time.monotonic() - begin))
                self._take(None if self._plan is None else left_s)
        assert self._plan is not None
        if self._pending is not None:
            self.missed += 1
            self.held += self._at >= len(self._plan)
        action = self._plan[min(self._at, len(self._plan) - 1)]
        self._at, self._step = self._at + 1, self._step + 1
        return action.copy()

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        """A whole plan `[T, A]`, raw, for a loop that executes `execution_horizon` of its actions before the next call.

        Pass one control step's observation (the O - 1 before it are those of earlier calls) or all O steps at once.
        """
        self._observe(observation)
        executed = self.exported.selection.executed
        self._adopt(self._evaluate(self._window(), self._latents(), self._last, executed), 0)
        assert self._plan is not None
        self._step += 1
        return self._plan.copy()

    def generate(self, observation: Observation, latents: np.ndarray) -> np.ndarray:
        """Raw chunks `[M, T, A]` of latents `[M, ..]` for one whole observation. It reads and changes no state."""
        return self._chunks({each.name: _checked(each, observation, True) for each in self.exported.inputs}, latents)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _observe(self, observation: Observation) -> None:
        """Add this step to the history, or replace the history by all O steps."""
        steps, is_head = self.exported.observation_steps, self.exported.is_head
        values = {each.name: _checked(each, observation, is_head) for each in self.exported.inputs}
        whole = {value.ndim == len(each.shape) for each, value in zip(self.exported.inputs, values.values(), strict=True)}
        if len(whole) > 1:
            raise ValueError("observation: got some features of one step and some of all steps; expected the same for all")
        if is_head:
            self._history = [values]
        elif whole == {True}:
            self._history = [{name: value[step] for name, value in values.items()} for step in range(steps)]
        else:
            self._history = [*(self._history or [values] * steps)[1:], values] if steps > 1 else [values]

    def _window(self) -> dict[str, np.ndarray]:
        if self.exported.is_head:
            return self._history[0]
        return {each.name: np.stack([step[each.name] for step in self._history]) for each in self.exported.inputs}

    def _latents(self) -> np.ndarray:
        """The latents of the next replan; forgets the last plan or latent when it is time."""
        selection = self.exported.selection
        if selection.forgets(self._replans):
            self._last = self._latent = None
        self._replans += 1
        if selection.kind != "kept_latent":
            return self.draw(selection.count(self.exported.horizon))
        self._latent = self.draw(1) if self._latent is None else self._latent
        return self._latent

    def _evaluate(self, window: dict[str, np.ndarray], latents: np.ndarray, last: Plan | None, done: int) -> Plan:
        """The plan that is selected among the chunks of these latents."""
        plan = self._in_one_call(window, latents, last, done)
        if plan is None:
            chunks_MTA = self._chunks(window, latents)
            index = self.exported.selection.index(chunks_MTA, None if last is None else last.actions_TA, done)
            plan = Plan(chunks_MTA[index].copy())  # a backend may reuse its memory
        if not np.isfinite(plan.actions_TA).all():
            raise ValueError(f"{self.exported.folder}: the student returned NaN or infinity; stop the robot and check the "
                             "observation against the ranges of the training data")  # fmt: skip
        return plan

    def _in_one_call(
        self, window: dict[str, np.ndarray], latents: np.ndarray, last: Plan | None, done: int
    ) -> Plan | None:
        """The plan that the whole call's graph selects. None where it cannot: without one, for another number of latents, and
        after a plan that it did not make or of which another number of actions was executed.
        """
        call = self.exported.call
        if self._whole is None or call is None or np.shape(latents) != (call.samples, *self.exported.latents.shape):
            return None
        feed = {name: value[None] for name, value in window.items()}
        feed[self.exported.latents.name] = np.asarray(latents, np.float32)[None]
        if call.takes_last_plan:
            if last is not None and (last.normalised_TA is None or done != self.exported.selection.executed):
                return None
            nothing = np.zeros((self.exported.horizon, len(self.exported.action_names)), np.float32)
            feed[LAST_PLAN] = (nothing if last is None or last.normalised_TA is None else last.normalised_TA)[None]
            feed[HAS_LAST_PLAN] = np.array([last is not None], np.float32)
        chunk_1TA, candidates_1NTA, index_1 = self._whole(feed)
        return Plan(np.array(chunk_1TA[0]), np.array(candidates_1NTA[0, int(index_1[0])]))

    def _chunks(self, window: dict[str, np.ndarray], latents: np.ndarray) -> np.ndarray:
        exported = self.exported
        latents = np.asarray(latents, np.float32)
        if latents.shape[1:] != exported.latents.shape or not len(latents):
            wanted = ", ".join(map(str, exported.latents.shape))
            raise ValueError(f"latents: got the shape {latents.shape}, expected (M, {wanted})")
        count, fixed = len(latents), exported.samples
        if fixed and count > fixed:
            raise ValueError(f"latents: got {count}, this graph takes at most {fixed} at a time")
        if fixed:  # its number of samples could not be made dynamic
            latents = np.resize(latents, (fixed, *latents.shape[1:]))
        feed = {name: value[None] for name, value in window.items()} | {exported.latents.name: latents[None]}
        return self._graph(feed)[:count]

    def _take(self, timeout_s: float | None) -> None:
        """Adopt the pending plan if it is ready within the timeout [s]; None waits."""
        if self._pending is None:
            return
        step, future = self._pending
        try:
            plan = future.result(timeout_s)
        except Missed:
            return
        except ValueError:
            self._pending = None
            raise
        self._pending = None
        self._adopt(plan, self._step - step)

    def _adopt(self, plan: Plan, late: int) -> None:
        """Execute this plan from its action `late` on."""
        self._plan, self._last, self._at = plan.actions_TA, plan, late

    def _standard_draw(self, count: int) -> np.ndarray:
        shape, starting = self.exported.latents.shape, self.exported.starting
        if starting is None:
            return self._random.standard_normal((count, *shape), dtype=np.float32)
        noises, shares = starting
        chosen = np.searchsorted(shares, self._random.random(count) * shares[-1], side="right")
        return noises[np.minimum(chosen, len(noises) - 1)]


def _checked(wanted: Input, observation: Observation, whole: bool) -> np.ndarray:
    """A feature in the graph's dtype: of all steps or, unless `whole`, of one. Raises ValueError in one line."""
    name, shape = wanted.name, wanted.shape
    if name not in observation:
        raise ValueError(f"observation: {name} is missing, got {sorted(observation)}")
    try:
        value = np.ascontiguousarray(observation[name], dtype=wanted.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {type(observation[name]).__name__}, expected numbers of shape {shape}") from error
    if value.shape != shape and (whole or value.shape != shape[1:]):
        step = "" if whole else f" or, for one step, {shape[1:]}"
        raise ValueError(f"{name}: got the shape {value.shape}, expected {shape}{step}")
    if name.startswith("observation.images") and (value.min() < 0 or value.max() > 1):
        raise ValueError(f"{name}: got colours from {value.min():g} to {value.max():g}, expected 0 to 1: divide by 255")
    bad = np.isinf if name.startswith("observation.depth") else lambda each: ~np.isfinite(each)  # NaN: depth is unknown
    if bad(value).any():
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    return value
