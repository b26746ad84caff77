"""The contract of teachers, and a checker that you can run on your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from envs.specs import DEPTH

Observation = dict[str, Tensor]
"""Feature name to tensor `[B, O, ..]`, raw units: ``observation.state`` `[B, O, S]`, and camera features (envs.specs)."""


def batch_of(observation: Observation) -> tuple[int, torch.device]:
    """Batch size B and device of an observation. Raises ValueError for one without features."""
    if not observation:
        raise ValueError("observation: got none of its features, expected at least one")
    first = next(iter(observation.values()))
    return first.shape[0], first.device


FEATURES = "features"
"""Key of precomputed encoder features `[B, F]`, in place of an observation's own features."""


@runtime_checkable
class Teacher(Protocol):
    """Anything that draws K action chunks per observation."""

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """`[B, K, T, A]` raw actions, drawn independently; no gradient; the same generator state gives the same result."""
        ...

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` solver steps."""
        ...


@runtime_checkable
class SeededTeacher(Protocol):
    """A teacher that draws each chunk from a seed of its own, so that it does not depend on the batch."""

    def sample_from_seeds(self, observation: Observation, seeds_BK: np.ndarray, num_steps: int) -> Tensor:
        """`[B, K, T, A]` raw actions for int64 seeds `[B, K]`."""
        ...


@runtime_checkable
class RemoteTeacher(Protocol):
    """A teacher in another process, whose chunks arrive as plain numbers."""

    def contract_violations(self) -> list[str]:
        """Violations in the calls so far that are invisible here: gradient, device, a changed observation."""
        ...


@runtime_checkable
class TrainableTeacher(Protocol):
    """A teacher whose own network may be fine-tuned into a one-step student."""

    def in_place_violations(self, observation: Observation) -> list[str]:
        """What is wrong with what it offers for that, a line each; [] where it offers nothing."""
        ...


def check_teacher(
    teacher: Teacher, observation: Observation, action_size: int, num_steps: int = 2, num_hypotheses: int = 3
) -> None:
    """Raises ValueError with all violations of the contract; returns None when there are none.

    Checked: shape, finiteness, dtype, no gradient; same seed same result, different seeds different results; hypotheses that
    differ within one observation; at least one network evaluation; for a `SeededTeacher`, chunks that do not depend on the
    rest of the batch; for a `TrainableTeacher`, what it offers to be trained; an unchanged observation; and that a used
    feature that is missing or holds NaN is refused (NaN may also appear in the chunks, and in depth it may be imputed).

    observation: `[B, O, ..]`, e.g. by `teachers.networks.observations.fake_observation`; action_size: A.
    """
    batch, device = batch_of(observation)
    before = {name: value.clone() for name, value in observation.items()}

    def draw(seed: int, observation: Observation = observation) -> Tensor:
        return teacher.sample(observation, num_hypotheses, num_steps, torch.Generator(device).manual_seed(seed))

    first = draw(0)
    wrong = []
    is_finite = bool(torch.isfinite(first).all())
    if first.ndim != 4 or first.shape[:2] != (batch, num_hypotheses) or first.shape[-1] != action_size:
        wrong.append(f"shape: got {tuple(first.shape)}, expected ({batch}, {num_hypotheses}, T, {action_size or 'A'})")
    if not is_finite:
        wrong.append("values: got NaN or infinity, expected finite actions")
    if first.dtype != torch.float32:
        wrong.append(f"dtype: got {first.dtype}, expected torch.float32")
    if first.requires_grad:
        wrong.append("gradient: the sample requires grad; wrap sample in torch.no_grad()")
    if is_finite and not torch.equal(first, draw(0)):  # NaN does not equal itself
        wrong.append("determinism: one seed gave two results; draw all noise from the generator that is passed, keep nothing "
                     "from call to call, and call .eval() on networks")  # fmt: skip
    if torch.equal(first, draw(1)):
        wrong.append("randomness: two seeds gave one result; draw the noise from the generator that is passed")
    if first.ndim == 4 and first.shape[1] > 1 and torch.equal(first[:, 0], first[:, 1]):
        wrong.append("hypotheses: the K chunks of one observation are equal; draw a noise for each")
    if teacher.evaluations(num_steps) < 1:
        wrong.append(f"evaluations: got {teacher.evaluations(num_steps)} for {num_steps} steps, expected at least 1")
    if any(not torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in observation.items()):
        wrong.append("observation: it was changed in place; work on a copy")
    wrong += teacher.contract_violations() if isinstance(teacher, RemoteTeacher) else []
    if not wrong and isinstance(teacher, SeededTeacher):
        wrong = _batch_dependence(teacher, observation, num_steps, num_hypotheses)
    if not wrong and isinstance(teacher, TrainableTeacher):
        wrong = teacher.in_place_violations(observation)
    if not wrong:
        wrong = _ignored_faults(lambda given: draw(0, given), observation, first)
    if wrong:
        raise ValueError("this teacher does not keep the contract:\n  " + "\n  ".join(wrong))


def _batch_dependence(teacher: SeededTeacher, observation: Observation, num_steps: int, num_hypotheses: int) -> list[str]:
    """A violation where the last observation's chunks depend on those drawn in the same call."""
    batch, _ = batch_of(observation)
    seeds_BK = np.arange(batch * num_hypotheses).reshape(batch, num_hypotheses)
    together = teacher.sample_from_seeds(observation, seeds_BK, num_steps)[-1:]
    alone = teacher.sample_from_seeds({name: value[-1:] for name, value in observation.items()}, seeds_BK[-1:], num_steps)
    # rounding depends on the batch size, by up to this much in half precision
    if bool((together - alone).abs().max() <= 0.05 * together.std() + 1e-5 * together.abs().max()):
        return []
    return ["independence: an observation's chunks change with the rest of the batch; call .eval() on networks (batch norm in "
            "training mode does this), and do not mix rows of the batch"]  # fmt: skip


def _ignored_faults(draw: Callable[[Observation], Tensor], observation: Observation, first: Tensor) -> list[str]:
    """Violations where a used feature is missing or holds NaN and the teacher does not refuse the observation."""

    def different(given: Observation) -> Tensor | None:
        """The chunks, where they differ from `first`; None where it refuses the observation or does not use the feature."""
        try:
            drawn = draw(given)
        except (ValueError, KeyError):
            return None
        return None if torch.equal(drawn, first) else drawn

    wrong = []
    for name, value in observation.items():
        if different({key: each for key, each in observation.items() if key != name}) is not None:
            wrong.append(f"missing: without {name} it silently draws other chunks; raise ValueError with the feature's name")
        if not value.is_floating_point():
            continue
        with_nan = value.clone()
        with_nan.view(len(with_nan), -1)[:, 0] = torch.nan
        drawn, depth = different({**observation, name: with_nan}), name.startswith(DEPTH)
        if drawn is not None and bool(torch.isfinite(drawn).all()) != depth:
            how = "becomes one in the chunks; treat the pixel as unknown" if depth else "is ignored silently"
            wrong.append(f"NaN: one in {name} {how}, or raise ValueError with the feature's name")
    return wrong
