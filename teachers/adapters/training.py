"""Fine-tuning a user's own network in the adapter's process, so that one evaluation from noise gives a good chunk.

teachers/adapters/program.py loads it by its path, and the set losses with it (distill/hypotheses/distances.py, whose path it
is told): so it imports torch and nothing of ours. What is trained on, in which order and at which rate comes from the main
process. Python 3.10 or newer; safetensors, for what is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NOISE_RATE = 10.0
"""Learning rate of starting noises and their shares, of that of the weights: they are numbers of order one, and few."""

Tree = Any
"""Tensors in dicts, lists and tuples: a condition."""


class InPlaceTraining:
    """The trained weights of a policy, their average, their optimizer, and the observations that they are trained at.

    policy: a `teachers.adapters.one_step.OneStepPolicy`; losses: the module distill.hypotheses.distances. options:

    terms: pairs of a weight and a function of `losses`, summed; paired: whether each noise is the one a hypothesis came from.
    samples: M chunks an observation; at_once: observations whose graph is held at a time, the gradient is the same for any.
    weight_decay; autocast: "" or "bfloat16"; budget_bytes: conditions that take more are computed again in every step.
    starting_noises: how many are learned, 0 for Gaussian noise; seed: of what they begin with; rows: N observations.

    arrays: weights `[T, A]` of the distance; centre, scale `[A]` of the hypotheses' normalised space.
    """

    def __init__(self, policy: Any, losses: Any, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        device = policy.device
        self.policy, self.losses, self.options = policy, losses, options
        self.weights_TA, self.centre_A, self.scale_A = (
            torch.from_numpy(arrays[name].copy()).float().to(device) for name in ("weights", "centre", "scale")
        )
        self._conditions: list[Tree] = [None] * int(options["rows"])
        self._observations: list[dict[str, np.ndarray] | None] = [None] * int(options["rows"])
        self._hypotheses: list[Tensor | None] = [None] * int(options["rows"])
        self._seeds: list[list[int]] = [[]] * int(options["rows"])
        self.trained: dict[str, Tensor] = dict(policy.trained())
        count = int(options["starting_noises"])
        if count:
            generator = torch.Generator().manual_seed(int(options["seed"]))
            noises = torch.randn(count, *policy.noise_shape, generator=generator).to(device)
            self.trained["starting_noises"] = noises.requires_grad_(True)
            self.trained["starting_log_shares"] = torch.zeros(count, device=device, requires_grad=True)
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}
        own = [value for name, value in self.trained.items() if name.startswith("starting_")]
        groups: list[dict[str, Any]] = [{"params": list(policy.trained().values())}]
        if own:
            groups.append({"params": own, "weight_decay": 0.0, "factor": NOISE_RATE})
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=float(options["weight_decay"]))
        self.cached, self.encoded = True, 0

    # -- what it is trained at -------------------------------------------------------------------------------------

    def observe(self, first: int, observation: dict[str, Tensor], hypotheses: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        """Rows `first` .. of the training observations with their hypotheses `[n, K, T, A]` and seeds `[n, K]`.

        Returns the bytes of one condition and whether conditions are kept; decided at the first rows for all.
        """
        count = len(hypotheses)
        condition = detached(self.policy.encode(observation))
        size = sum(each.numel() * each.element_size() for each in self.policy.tensors(condition)) // count
        if first == 0:
            self.cached = size * len(self._conditions) <= int(self.options["budget_bytes"])
        for row in range(count):
            if self.cached:
                self._conditions[first + row] = rows_of(condition, slice(row, row + 1))
            else:
                seen = {name: each[row : row + 1].cpu().numpy() for name, each in observation.items()}
                self._observations[first + row] = seen
            self._hypotheses[first + row] = torch.from_numpy(hypotheses[row].copy())
            self._seeds[first + row] = seeds[row].tolist()
        self.encoded += count
        return {"bytes": int(size), "cached": self.cached}

    def _condition(self, rows: Sequence[int]) -> Tree:
        if self.cached:
            return joined([self._conditions[row] for row in rows])
        seen: list[Any] = [self._observations[row] for row in rows]
        observation = {name: torch.from_numpy(np.concatenate([each[name] for each in seen])) for name in seen[0]}
        self.encoded += len(rows)
        return detached(self.policy.encode({name: value.to(self.policy.device) for name, value in observation.items()}))

    # -- training --------------------------------------------------------------------------------------------------

    def steps(
        self, rows_SB: Sequence[Sequence[int]], seeds_S: Sequence[int], rates_S: Sequence[float], averages_S: Sequence[float]
    ) -> dict[str, Any]:
        """As many steps as there are rows of rows. seeds: of their noise; rates: learning rates; averages: by how much the
        averaged weights move to the trained ones. Raises ValueError for a gradient that is not finite."""
        began, began_cpu, total = time.monotonic(), time.process_time(), 0.0
        for rows_B, seed, rate, average in zip(rows_SB, seeds_S, rates_S, averages_S, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            self.optimizer.zero_grad()
            total += self._accumulate(rows_B, torch.Generator().manual_seed(seed))
            moved = [value for value in self.trained.values() if value.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(moved, 1.0)
            if not bool(torch.isfinite(norm)):
                raise ValueError(f"the gradient's norm is {float(norm)}, expected a finite one; lower the learning rate "
                                 "(--in-place.learning-rate), or look for extreme values in what is computed")  # fmt: skip
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), [each.detach() for each in self.trained.values()], average)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - began_cpu
        return {"loss": total / len(rows_SB), "seconds": seconds, "cpu_seconds": cpu_seconds}

    def _accumulate(self, rows_B: Sequence[int], generator: torch.Generator) -> float:
        """The mean loss of a step, its gradient added up part by part: exact, as sets are compared within one observation."""
        count, samples = len(rows_B), int(self.options["samples"])
        noise, log_shares, hypotheses_BKTA = self._draws(rows_B, samples, generator)
        total = 0.0
        size = int(self.options["at_once"]) or count
        for part in (slice(first, min(first + size, count)) for first in range(0, count, size)):
            condition = self.policy.repeated(self._condition(rows_B[part]), samples)
            with self._autocast():
                raw_NTA = self.policy.chunks(condition, noise()[part].flatten(0, 1))
            student_BMTA = ((raw_NTA.float() - self.centre_A) / self.scale_A).unflatten(0, (-1, samples))
            teacher_BKTA = hypotheses_BKTA[part].to(student_BMTA)
            loss = self._loss(student_BMTA, teacher_BKTA)
            if log_shares is not None:
                loss = loss + self.losses.share_loss(log_shares()[part], student_BMTA, teacher_BKTA, self.weights_TA)
            loss = loss * (len(student_BMTA) / count)
            loss.backward()
            total += float(loss.detach())
        return total

    def _loss(self, student_BMTA: Tensor, teacher_BKTA: Tensor) -> Tensor:
        values = []
        for weight, name in self.options["terms"]:
            values.append(weight * getattr(self.losses, name)(student_BMTA, teacher_BKTA, self.weights_TA))
        return torch.stack(values).sum()

    def _draws(
        self, rows_B: Sequence[int], samples: int, generator: torch.Generator
    ) -> tuple[Callable[[], Tensor], Callable[[], Tensor] | None, Tensor]:
        """Noise `[B, M, ..]`, logarithms of the shares of starting noises `[B, M]`, and hypotheses `[B, K, T, A]`.

        The first two as functions: each part of a step has a graph of its own.
        """
        hypotheses_BKTA = torch.stack([each for row in rows_B if (each := self._hypotheses[row]) is not None])
        device = self.policy.device
        if self.options["paired"]:  # the first M of a fresh order are the partners
            order_BK = torch.rand(hypotheses_BKTA.shape[:2], generator=generator).argsort(-1)
            hypotheses_BKTA = hypotheses_BKTA.gather(1, order_BK[..., None, None].expand_as(hypotheses_BKTA))
            orders = zip(rows_B, order_BK.tolist(), strict=True)
            seeds = [self._seeds[row][k] for row, order in orders for k in order[:samples]]
            noise = self.policy.noise(seeds).unflatten(0, (len(rows_B), samples))
            return lambda: noise, None, hypotheses_BKTA
        if "starting_noises" not in self.trained:
            noise = torch.randn(len(rows_B), samples, *self.policy.noise_shape, generator=generator).to(device)
            return lambda: noise, None, hypotheses_BKTA
        noises, log_shares = self.trained["starting_noises"], self.trained["starting_log_shares"]
        share_J = log_shares.detach().softmax(-1).cpu()
        drawn = torch.multinomial(share_J, len(rows_B) * samples, replacement=True, generator=generator)
        drawn_BM = drawn.view(len(rows_B), samples).to(device)
        return lambda: noises[drawn_BM], lambda: log_shares.log_softmax(-1)[drawn_BM], hypotheses_BKTA

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.options["autocast"]:
            return contextlib.nullcontext()
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """The averaged weights, as `OneStepPolicy.load` reads them."""
        tensors = dict(self.average)
        if "starting_log_shares" in tensors:
            tensors["starting_log_shares"] = tensors["starting_log_shares"].log_softmax(-1)
        write_tensors(path, tensors, {})

    def write_resume(self, path: Path, state: Mapping[str, Any]) -> None:
        """All that training goes on from. state: what the main process will want to know then, as JSON."""
        tensors = {f"trained/{name}": value.detach() for name, value in self.trained.items()}
        tensors.update({f"average/{name}": value for name, value in self.average.items()})
        for name, value in self.trained.items():
            for key, each in self.optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(each)
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def resume(self, path: Path) -> dict[str, Any]:
        """The state that was written with what is there, {} where nothing is. Raises ValueError for another network's."""
        if not path.is_file():
            return {}
        tensors, header = read_tensors(path)
        wanted = {f"trained/{name}" for name in self.trained}
        if {name for name in tensors if name.startswith("trained/")} != wanted:
            raise ValueError(f"{path} was written for other weights than trained() gives; delete it to train from the start")
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(tensors[f"trained/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
                kept = {key: tensors[f"optimizer/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                        if f"optimizer/{key}/{name}" in tensors}  # fmt: skip
                if kept:  # AdamW counts its steps on the host
                    self.optimizer.state[value] = {key: each if key == "step" else each.to(value) for key, each in kept.items()}
        return dict(json.loads(header["state"]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file, there whole or not at all. Raises ValueError without the package."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ValueError("training in place writes safetensors files; in this interpreter: pip install safetensors") from error
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file. Raises ValueError without the package, or for a file that is not whole."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError("training in place reads safetensors files; in this interpreter: pip install safetensors") from error
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


# -- conditions ----------------------------------------------------------------------------------------------------------


def mapped(change: Callable[..., Tensor], *trees: Tree) -> Tree:
    """The first tree with each tensor replaced by what `change` makes of those that stand there in all trees."""
    first = trees[0]
    if isinstance(first, Tensor):
        return change(*trees)
    if isinstance(first, dict):
        return {name: mapped(change, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, (list, tuple)):
        parts = [mapped(change, *each) for each in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def rows_of(condition: Tree, rows: slice) -> Tree:
    """Some rows of each tensor."""
    return mapped(lambda value: value[rows], condition)


def joined(conditions: Sequence[Tree]) -> Tree:
    """The rows of all conditions, one after the other."""
    return mapped(lambda *values: torch.cat(values), *conditions)


def detached(condition: Tree) -> Tree:
    """The same without a graph; of tensors made in inference mode a copy, which autograd may keep."""
    return mapped(lambda value: value.clone() if value.is_inference() else value.detach(), condition)
