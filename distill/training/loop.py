"""The training loop of teachers and students: exact resume, the same batches for any number of processes."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from distill.store.manifest import remove, write_bytes, write_folder, write_json
from distill.training.ema import ExponentialAverage
from distill.training.flat import FlatParameters

RESUME = "resume.safetensors"
_LOG_EVERY = 50


class Schedule(Protocol):
    """The part of a config that learning rates and candidates depend on."""

    @property
    def training_steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def candidates(self) -> int: ...


class Settings(Schedule, Protocol):
    """The part of a TeacherConfig or StudentConfig that the loop needs."""

    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema_decay(self) -> float: ...


@dataclass(frozen=True)
class Share:
    """This process's part of the global batch: rows rank, rank + world, ..."""

    rank: int = 0
    world: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        return tensor[self.rank :: self.world]

    def count(self, rows: int) -> int:
        """How many of `rows` rows it is."""
        return len(range(self.rank, rows, self.world))

    def parts(self, number: int) -> list[Share]:
        """The share in `number` parts, which together have its rows."""
        return [Share(self.rank + self.world * part, self.world * number) for part in range(number)]


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> Tensor:
    """Rows `[B]` of the global batch of a step: every epoch in a new order, a function of (seed, step) only.

    The data order therefore needs no saving for a resume, and any number of processes sees the same batches.
    """
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    rows = torch.empty(batch_size, dtype=torch.long)
    for epoch in (positions // length).unique().tolist():
        here = positions // length == epoch
        rows[here] = _order(seed, epoch, length)[positions[here] % length]
    return rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> Tensor:
    return torch.randperm(length, generator=step_generator(seed, epoch, stream=1))


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator that depends on (seed, stream, step) only."""
    return torch.Generator().manual_seed((seed * 4 + stream) * 1_000_003 + step)


def learning_rate(settings: Schedule, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.training_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def without_accumulate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training without the parts that a batch is divided into, which change rounding only."""
    return {name: value for name, value in settings.items() if name != "accumulate"}


def candidate_steps(settings: Schedule) -> list[int]:
    """The steps whose averaged weights become candidates: evenly spaced over the last 40 % of training."""
    steps, count = settings.training_steps, settings.candidates
    return sorted({steps - round(0.4 * steps * index / count) for index in range(count)} - {0})


LossOfStep = Callable[[nn.Module, Any, torch.Generator, Share], Tensor]
Save = Callable[[nn.Module, Path], None]


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Callable[[int, int, Share], Iterator[Any]],
    loss_of_step: LossOfStep,
    settings: Settings,
    seed: int,
    folder: Path,
    save_candidate: Save,
    on_log: Callable[[int, float], None],
    title: str,
    stop_after: int | None = None,
    alone: bool = False,
) -> list[dict[str, float]]:
    """Train `model` with AdamW and an average of its weights, from where `folder` says training stopped.

    batches: (first step, last step, share of the batch) to the batches. loss_of_step: (wrapped model, batch, generator of the
    step, share of the batch) to a scalar, a mean over the rows. save_candidate: (averaged model, folder) writes a policy.
    stop_after: stop at this step, as an interruption would (for tests). alone: this process trains on its own.
    With `settings.accumulate` the process's part of a batch is read and differentiated in so many parts, one after another; the
    gradient is that of the whole up to rounding.
    Returns the loss curve; the averaged weights of `candidate_steps` are written to ``candidate-<step>`` folders.
    Raises ValueError for a batch smaller than the number of processes times parts, and FloatingPointError, on every process,
    when the gradient is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alone = alone or accelerator.num_processes == 1
    device, main = accelerator.device, alone or accelerator.is_main_process
    share = Share() if alone else Share(accelerator.process_index, accelerator.num_processes)
    if settings.batch_size < share.world * settings.accumulate:
        times = f" x {settings.accumulate} parts" if settings.accumulate > 1 else ""
        raise ValueError(f"batch_size {settings.batch_size} is smaller than the {share.world} processes{times}; raise it")
    model = model.to(device).train()
    average = ExponentialAverage(model, settings.ema_decay)
    wrapped: nn.Module = model if alone else accelerator.prepare_model(model)
    # after that: with several processes accelerate gives the parameters memory of their own
    flat = FlatParameters(each for each in model.parameters() if each.requires_grad)
    optimizer = torch.optim.AdamW([flat.vector], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    first, curve, summed = _load_resume(folder / RESUME, model, average, flat, optimizer)
    marks = candidate_steps(settings)
    save_every = max(1, settings.training_steps // 20)
    total, counted = torch.tensor(summed[0], device=device), summed[1]
    bar = tqdm(total=settings.training_steps, initial=first, desc=title, disable=not main,
               mininterval=2.0, unit="step")
    last = settings.training_steps if stop_after is None else min(stop_after, settings.training_steps)
    parts = share.parts(settings.accumulate)
    streams = [(part, part.count(settings.batch_size) / share.count(settings.batch_size), batches(first, last, part))
               for part in parts]  # fmt: skip
    for step in range(first, last):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
        read = []
        for part, weight, stream in streams:
            read.append(next(stream))
            is_last = alone or part is parts[-1]  # processes average their gradients once, after the last part
            with contextlib.nullcontext() if is_last else accelerator.no_sync(wrapped):
                loss = weight * loss_of_step(wrapped, read[-1], step_generator(seed, step), part)
                loss.backward()
            total = total + loss.detach()
        # the gradient was averaged over all processes, so all of them see the same norm and stop together
        gradient = flat.take_gradient()
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"{title}: the gradient's norm is {norm} at step {step}, the loss of this batch is {loss.item() / weight:g} "
                f"({'; '.join(map(in_words, read))}); nothing was learned from it. Lower the learning rate "
                f"({settings.learning_rate}) or look for extreme values in the data"
            )
        if norm > 1:
            gradient.mul_(1 / norm)
        optimizer.step()
        average.update(flat.vector)
        counted += 1
        bar.update()
        done = step + 1
        if done % _LOG_EVERY == 0 or done == settings.training_steps:
            mean_loss = float(total if alone else accelerator.reduce(total, reduction="mean")) / counted
            total, counted = torch.zeros((), device=device), 0
            curve.append({"step": done, "loss": mean_loss})
            bar.set_postfix(loss=f"{mean_loss:.4f}")
            if main:
                on_log(done, mean_loss)
        if main and done in marks:
            # on disk before the resume file that says it was written
            write_folder(_candidate(folder, done), lambda target: save_candidate(average.model, target))
        if main and (done % save_every == 0 or done in marks):
            _save_resume(folder / RESUME, done, model, average, flat, optimizer, curve, (float(total), counted))
    bar.close()
    if not alone:
        accelerator.wait_for_everyone()
    return curve


def in_words(batch: Any) -> str:
    """What is odd about the values of a batch: which rows of which tensors are not finite, else the largest magnitude."""
    tensors = {name: value for name, value in batch.items() if value.is_floating_point()} if isinstance(batch, dict) else {}
    for name, value in tensors.items():
        bad = (~torch.isfinite(value.reshape(len(value), -1))).any(1).nonzero().flatten().tolist()
        if bad:
            return f"rows {bad[:5]} of its {name} are not finite"
    largest = {name: float(value.abs().max()) for name, value in tensors.items() if value.numel()}
    return "its values are finite" + "".join(f", {name} up to {most:.3g}" for name, most in largest.items())


def finish(folder: Path, curve: list[dict[str, float]]) -> None:
    """Write ``curve.json`` and delete the resume file."""
    write_json(folder / "curve.json", curve)
    remove(folder / RESUME)


def with_candidates(folder: Path, settings: Schedule) -> Path:
    """The folder of a finished training. Raises ValueError where a file of a candidate is missing."""
    for step in candidate_steps(settings):
        for name in ("config.json", "model.safetensors"):
            path = _candidate(folder, step) / name
            if not path.is_file():
                raise ValueError(f"{path} is missing")
    return folder


def _candidate(folder: Path, step: int) -> Path:
    return folder / f"candidate-{step:06d}"


def _save_resume(
    path: Path, step: int, model: nn.Module, average: ExponentialAverage, flat: FlatParameters,
    optimizer: torch.optim.Optimizer, curve: Sequence[dict[str, float]], summed: tuple[float, int],
) -> None:  # fmt: skip
    """One safetensors file: weights, averaged weights and optimizer state per parameter; step and curve in its header."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.model.state_dict().items()}
    for name, value in optimizer.state[flat.vector].items():
        parts = [value.clone() for _ in flat.parameters] if value.ndim == 0 else flat.split(value)
        tensors |= {f"optimizer.{index}.{name}": part for index, part in zip(_trained(model), parts, strict=True)}
    header = {"state": json.dumps({"step": step, "updates": average.updates, "curve": list(curve), "summed": summed})}
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header))


def _load_resume(
    path: Path, model: nn.Module, average: ExponentialAverage, flat: FlatParameters, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]], tuple[float, int]]:
    if not path.is_file():
        return 0, [], (0.0, 0)
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no dict)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): the disk has damaged it. Delete it to "
                         "train from the beginning") from error  # fmt: skip
    model.load_state_dict(_below(tensors, "model."))
    average.model.load_state_dict(_below(tensors, "average."))
    average.updates = header["updates"]
    trained = _trained(model)
    state = {name: torch.cat([tensors[f"optimizer.{index}.{name}"].flatten() for index in trained])
             for name in ("exp_avg", "exp_avg_sq")}  # fmt: skip
    state["step"] = tensors[f"optimizer.{trained[0]}.step"]
    optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(header["step"]), list(header["curve"]), tuple(header["summed"])


def _trained(model: nn.Module) -> list[int]:
    """Numbers of the trained parameters among all."""
    return [index for index, each in enumerate(model.parameters()) if each.requires_grad]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
