"""Fine-tuning a user's own network in the adapter's process, so that one evaluation from noise gives a good chunk.

teachers/adapters/program.py loads it by its path, and what it needs of ours with it: the set losses
(distill/hypotheses/distances.py, whose path it is told) and the conditions (conditions.py). So it imports torch and nothing of
ours. What is trained on, in which order and at which rate comes from the main process. Python 3.10 or newer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NOISE_RATE = 10.0
"""Learning rate of starting noises and their shares, of that of the weights: they are numbers of order one, and few."""


GROUP_TIMEOUT_S = 600.0
"""After this long without the other processes, a process that trains with them gives up [s]."""


def join(store: str, rank: int, world: int, device: torch.device) -> None:
    """Join the processes that train together. store: a file that all of them can write."""
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
            timeout=timedelta(seconds=GROUP_TIMEOUT_S),
        )  # fmt: skip


class InPlaceTraining:
    """The trained weights of a policy, their average, their optimizer, and the observations that they are trained at.

    policy: a `teachers.adapters.one_step.OneStepPolicy`; losses: the module distill.hypotheses.distances; files: the module
    conditions.py; conditions: one of its two classes, of all N observations. options:

    terms: pairs of a weight and a function of `losses`, summed; paired: whether each noise is the one a hypothesis came from.
    samples: M chunks an observation; at_once: observations whose graph is held at a time, the gradient is the same for any.
    weight_decay; autocast: "" or "bfloat16". starting_noises: how many are learned, 0 for Gaussian noise; seed: of what they
    begin with; rows: N observations. rank, world: which of how many processes this is; each computes a part of every step's
    gradient, and torch.distributed adds the parts up.

    arrays: weights `[T, A]` of the distance; centre, scale `[A]` of the hypotheses' normalised space.
    """

    def __init__(
        self, policy: Any, losses: Any, files: Any, conditions: Any, options: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        device = policy.device
        self.policy, self.losses, self.files, self.conditions, self.options = policy, losses, files, conditions, options
        self.weights_TA, self.centre_A, self.scale_A = (
            torch.from_numpy(arrays[name].copy()).float().to(device) for name in ("weights", "centre", "scale")
        )
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

    # -- what it is trained at -------------------------------------------------------------------------------------

    def observe(self, first: int, hypotheses: np.ndarray, seeds: np.ndarray) -> None:
        """Hypotheses `[n, K, T, A]` and their seeds `[n, K]` of the training observations `first` .. ."""
        for row in range(len(hypotheses)):
            self._hypotheses[first + row] = torch.from_numpy(hypotheses[row].copy())
            self._seeds[first + row] = seeds[row].tolist()

    # -- training --------------------------------------------------------------------------------------------------

    def steps(
        self, rows_SB: Sequence[Sequence[int]], seeds_S: Sequence[int], rates_S: Sequence[float], averages_S: Sequence[float]
    ) -> dict[str, Any]:
        """As many steps as there are rows of rows. seeds: of their noise; rates: learning rates; averages: by how much the
        averaged weights move to the trained ones. Returns this process's part of the mean loss, and its time.

        Raises ValueError for a gradient that is not finite: all processes see the same one, so all of them do."""
        began, began_cpu, total = time.monotonic(), time.process_time(), 0.0
        for rows_B, seed, rate, average in zip(rows_SB, seeds_S, rates_S, averages_S, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            self.optimizer.zero_grad()
            total += self._accumulate(rows_B, torch.Generator().manual_seed(seed))
            self._add_up()
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
        """This process's part of the mean loss of a step, its gradient added up part by part.

        Exact: sets are compared within one observation, and what is drawn does not depend on the parts.
        """
        count, samples = len(rows_B), int(self.options["samples"])
        noise, log_shares, hypotheses_BKTA = self._draws(rows_B, samples, generator)
        total, rank, world = 0.0, int(self.options["rank"]), int(self.options["world"])
        mine = slice(count * rank // world, count * (rank + 1) // world)
        size = int(self.options["at_once"]) or count
        for part in (slice(first, min(first + size, mine.stop)) for first in range(mine.start, mine.stop, size)):
            condition = self.policy.repeated(self.conditions.rows(rows_B[part]), samples)
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

    def _add_up(self) -> None:
        """Sum the gradients of all processes, in one message. A weight that no process reached keeps none."""
        if int(self.options["world"]) == 1:
            return
        weights = list(self.trained.values())
        parts = [(torch.zeros_like(each) if each.grad is None else each.grad).float().flatten() for each in weights]
        reached = torch.tensor([float(each.grad is not None) for each in weights], device=self.policy.device)
        flat = torch.cat([*parts, reached])
        torch.distributed.all_reduce(flat)
        *summed, reached = flat.split([*(len(each) for each in parts), len(weights)])
        for value, gradient, found in zip(weights, summed, reached.tolist(), strict=True):
            value.grad = gradient.view_as(value).to(value.dtype) if found else None

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
        self.files.write_tensors(path, tensors, {})

    def write_resume(self, path: Path, state: Mapping[str, Any]) -> None:
        """All that training goes on from. state: what the main process will want to know then, as JSON."""
        tensors = {f"trained/{name}": value.detach() for name, value in self.trained.items()}
        tensors.update({f"average/{name}": value for name, value in self.average.items()})
        for name, value in self.trained.items():
            for key, each in self.optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(each)
        self.files.write_tensors(path, tensors, {"state": json.dumps(state)})

    def resume(self, path: Path) -> dict[str, Any]:
        """The state that was written with what is there, {} where nothing is. Raises ValueError for another network's."""
        if not path.is_file():
            return {}
        tensors, header = self.files.read_tensors(path)
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
