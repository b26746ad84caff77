"""The stages `train/in_place` and `distill/in_place`: an external policy's own network, fine-tuned to one evaluation.

It is trained in the adapter's interpreter (teachers/adapters/training.py), in a process of its own, and goes on in a new one
when that process dies. Observations, hypotheses, the order of batches and the choice among checkpoints are ours.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

import distill.hypotheses.distances as losses
from distill.evaluation.external import AdapterPolicy, Statistics
from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.distances import chunk_weights
from distill.hypotheses.perturbation import with_perturbed
from distill.inputs.choice import Choice
from distill.inputs.observations import Observe
from distill.inputs.policies import Kind
from distill.inputs.recorded import Opened, Recording
from distill.inputs.teachers import TeacherSource
from distill.objectives.sets import ANCHORED, terms_of
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input
from distill.stages.sample import SampleHypotheses
from distill.store.manifest import COST_FOLDER, sha256_file, write_json
from distill.training.ema import average_weight
from distill.training.loop import RESUME, batch_indices, candidate_steps, finish, learning_rate, step_generator
from teachers.adapters.teacher import AdapterGone, AdapterTeacher
from teachers.networks.normalisation import Normaliser

IN_PLACE = "in_place"
"""The recipe's name: of its stages, of its results, and the `kind` in its config.json."""

LOSSES = {
    "chamfer": "chamfer", "chamfer_energy": "chamfer_energy", "energy_distance": "energy_distance", "fidelity": "fidelity",
    "imle": "coverage", "noise_regression": "paired",
}  # fmt: skip
"""The objectives that a policy can be trained by in its own interpreter, and their functions in hypotheses.distances."""

STARTS, LOG_EVERY, SAVE_EVERY_S, MESSAGE_S = 4, 50, 30.0, 2.0
"""Processes that may die during one training; steps of a point of the loss curve; seconds between two writings of what a resume
needs; seconds that one message to the process should take, so that the progress bar moves."""

OWN_FORMAT = "policy"
"""The folder, beside the weights, that the adapter's `save` wrote."""


def loss_terms(objective: str) -> list[tuple[float, str]]:
    """Weights and functions of `distill.hypotheses.distances` of an objective, or of a weighted sum.

    Raises ValueError for one that cannot be trained in place.
    """
    terms = []
    for weight, name, value in terms_of(ANCHORED if objective == "anchored" else objective):
        if name not in LOSSES or value:
            raise ValueError(f"in_place.objective: got {objective!r}, expected one of {[*sorted(LOSSES), 'anchored']}, or a "
                             "weighted sum such as 'chamfer+0.5energy_distance'")  # fmt: skip
        terms.append((weight, LOSSES[name]))
    return terms


def rate_for(weights: int) -> float:
    """The learning rate for so many weights: 2.5e-3 up to half a million, beyond that falling as their root.

    Measured for small networks only (docs/lab-notes.md); the fall makes 1e-4 of 300 million, as such heads are trained with.
    """
    return 2.5e-3 * min(1.0, (5e5 / weights) ** 0.5)


@dataclass(frozen=True)
class InPlaceConfig:
    """Fine-tuning of an external policy's own network, so that one evaluation gives a chunk (`TrainInPlace`).

    Attributes:
        objective: chamfer, chamfer_energy, energy_distance, fidelity, imle, noise_regression, anchored, or a weighted sum such
            as chamfer+0.5energy_distance
        starting_noises: learned starting noises with learned shares; 0: Gaussian noise, and the saved policy needs no flow2one
        num_latents: M, chunks per observation and training step
        unexecuted_weight: weight of actions after the execution horizon
        training_steps: optimizer steps
        batch_size: observations per step
        at_once: observations whose graph is in memory at a time, 0 for the whole batch; less memory, the same gradient
        learning_rate: 0: 2.5e-3 up to 500,000 trained weights, decreasing with their square root beyond
        weight_decay: of AdamW
        warmup_steps: steps of linear warm-up
        ema_decay: of the averaged weights that are evaluated
        candidates: checkpoints to choose from
        bfloat16: train with bfloat16 autocast
        memory_mb: memory for encoded observations [MiB]; if they need more, they are encoded again in every step
    """

    objective: str = "chamfer"
    starting_noises: int = 0
    num_latents: int = 8
    unexecuted_weight: float = 0.25
    training_steps: int = 3000
    batch_size: int = 32
    at_once: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.99
    candidates: int = 3
    bfloat16: bool = False
    memory_mb: int = 2048


@dataclass(frozen=True)
class TrainInPlace(FolderStage):
    """opened: the policy, behind an adapter; statistics: whose action space sets are compared in; weights: `[A]` there.

    hypotheses: what it is trained on, at the observations of `recording`.
    """

    opened: Opened
    statistics: TeacherSource
    hypotheses: SampleHypotheses
    recording: Recording
    config: InPlaceConfig
    weights: tuple[float, ...]
    execution_horizon: int
    seed: int
    side_by_side: ClassVar[bool] = True
    recipe_name: ClassVar[str] = IN_PLACE
    begins_with_teacher: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"train/{IN_PLACE}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"sample": self.hypotheses, "statistics": self.statistics, "policy": self.opened}

    @property
    def settings(self) -> Mapping[str, Any]:
        # how the same gradient is computed, and from how much memory, changes no student
        student = {name: value for name, value in asdict(self.config).items() if name not in ("at_once", "memory_mb")}
        return {"in_place": student, "seed": self.seed, "execution_horizon": self.execution_horizon, "weights": self.weights}

    def run(self, context: Context, folder: Path) -> None:
        for start in range(STARTS):
            worker = self.teacher.another()
            try:
                curve = self._train(context, worker, folder)
                break
            except AdapterGone as error:
                if start == STARTS - 1:
                    raise
                context.say(f"  {error}; training goes on in a new process")
            finally:
                worker.close()
        finish(folder, curve)

    @property
    def teacher(self) -> AdapterTeacher:
        assert isinstance(self.opened.policy, AdapterTeacher)
        return self.opened.policy

    def _train(self, context: Context, worker: AdapterTeacher, folder: Path) -> list[dict[str, float]]:
        """Train from wherever `folder` says it stopped. Returns the loss curve."""
        cache = self.hypotheses.with_frames(context)
        state, rate = self._begin(context, worker, folder, len(cache))
        config = replace(self.config, learning_rate=rate)
        step, curve = int(state.get("step", 0)), list(state.get("curve", []))
        total, counted = state.get("summed", (0.0, 0))
        self._observe(context, worker, cache)
        marks, pace, saved, spent = candidate_steps(config), 1, time.monotonic(), 0.0
        account = folder / COST_FOLDER / f"{time.time_ns()}-{os.getpid()}-worker.json"
        account.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=config.training_steps, initial=step, desc=IN_PLACE, unit="step", disable=not context.is_main)
        with bar:
            while step < config.training_steps:
                ends = [step + pace, (step // LOG_EVERY + 1) * LOG_EVERY, config.training_steps]
                last = min([*ends, *(mark for mark in marks if mark > step)])
                told = self._steps(worker, step, last, len(cache), config)
                pace = max(1, round(MESSAGE_S * (last - step) / max(told["seconds"], 1e-6)))
                total, counted, spent = total + told["loss"] * (last - step), counted + last - step, spent + told["cpu_seconds"]
                bar.update(last - step)
                step = last
                if step % LOG_EVERY == 0 or step == config.training_steps:
                    curve.append({"step": step, "loss": total / counted})
                    context.log(f"distill/{IN_PLACE}", curve[-1])
                    bar.set_postfix(loss=f"{total / counted:.4f}")
                    total, counted = 0.0, 0
                if step in marks or time.monotonic() - saved > SAVE_EVERY_S:
                    self._write(worker, folder, step, step in marks, {"step": step, "curve": curve, "summed": (total, counted)})
                    write_json(account, {"seconds": 0.0, "cpu_seconds": spent})
                    saved = time.monotonic()
        return curve

    def _begin(
        self, context: Context, worker: AdapterTeacher, folder: Path, rows: int
    ) -> tuple[dict[str, Any], float]:
        """Tell the process what to train; returns what was written last, and the learning rate."""
        config, shape = self.config, self.opened.shape
        normaliser = self._normaliser(context)
        centre, scale = (np.broadcast_to(each.numpy(), shape.action_size) for each in normaliser.centre_scale("action"))
        weights = chunk_weights(torch.tensor(self.weights), shape.horizon, self.execution_horizon, config.unexecuted_weight)
        terms = loss_terms(config.objective)
        told, _ = worker.request(
            "train", {"weights": weights.numpy(), "centre": centre, "scale": scale}, losses=losses.__file__,
            resume=str((folder / RESUME).resolve()), terms=terms, paired=any(name == "paired" for _, name in terms),
            samples=config.num_latents, at_once=config.at_once, weight_decay=config.weight_decay,
            autocast="bfloat16" if config.bfloat16 else "", budget_bytes=config.memory_mb << 20,
            starting_noises=config.starting_noises, seed=self.seed, rows=rows,
        )  # fmt: skip
        rate = config.learning_rate or rate_for(told["weights"])
        context.say(f"  {told['weights']} weights are trained, learning rate {rate:.1e}")
        return dict(told["state"]), rate

    def _observe(self, context: Context, worker: AdapterTeacher, cache: HypothesisDataset) -> None:
        """Give it all observations and hypotheses; it encodes each observation once, where the conditions fit in memory."""
        observe, rows = self._observations(context), len(cache)
        for first in range(0, rows, self.hypotheses.config.batch_size):
            block = cache.batch(range(first, min(first + self.hypotheses.config.batch_size, rows)))
            seen = {name: torch.from_numpy(value) for name, value in observe(block["frame_index"].numpy()).items()}
            arrays = {**worker.arrays(seen), "hypotheses": block["hypotheses"].half().numpy(), "seeds": block["seed"].numpy()}
            told, _ = worker.request("observe", arrays, first=first)
            if first == 0:
                size = f"{told['bytes'] / 1024:.1f} KB an observation, {told['bytes'] * rows / (1 << 20):.1f} MB in all"
                how = "encoded once, kept in memory" if told["cached"] else "encoded again in every step (--in-place.memory-mb)"
                context.say(f"  conditions: {size}: {how}")

    def _observations(self, context: Context) -> Observe:
        """What was observed at the frames of the cache, and at their perturbed copies."""
        observe, moved = self.recording.observe(context, self.opened.shape), self.hypotheses.config.perturbation
        if not moved:
            return observe
        spread_S = moved * self._normaliser(context).state_spread()
        return with_perturbed(observe, self.recording.num_frames(context), spread_S, self.hypotheses.seed)

    def _normaliser(self, context: Context) -> Normaliser:
        return copy.deepcopy(self.statistics.normaliser(context)).cpu()

    def _steps(
        self, worker: AdapterTeacher, first: int, last: int, count: int, config: InPlaceConfig
    ) -> dict[str, Any]:
        steps = range(first, last)
        rows = np.stack([batch_indices(self.seed, step, config.batch_size, count).numpy() for step in steps])
        told, _ = worker.request(
            "steps", {"rows": rows}, seeds=[step_generator(self.seed, step).initial_seed() for step in steps],
            rates=[learning_rate(config, step) for step in steps],
            averages=[average_weight(config.ema_decay, step + 1) for step in steps],
        )  # fmt: skip
        return told

    def _write(self, worker: AdapterTeacher, folder: Path, step: int, mark: bool, state: dict[str, Any]) -> None:
        """What a resume needs and, at a mark, the averaged weights as a checkpoint to be chosen among."""
        candidate = folder / f"candidate-{step:06d}"
        if mark:
            candidate.mkdir(exist_ok=True)
            adapter = self.teacher.adapter
            write_json(candidate / "config.json", {
                "kind": IN_PLACE, "step": step, "objective": self.config.objective, "shape": self.opened.shape.to_json(),
                "adapter": {"file": str(adapter.file), "sha256": sha256_file(adapter.file), "function": adapter.function,
                            "arguments": dict(adapter.arguments), "python": adapter.python},
            })  # fmt: skip
        weights = str((candidate / "model.safetensors").resolve()) if mark else ""
        worker.request("write", weights=weights, resume=str((folder / RESUME).resolve()), state=state)


@dataclass(frozen=True)
class ChooseInPlace(FolderStage):
    """The chosen checkpoint of a policy that was fine-tuned in place, also in the policy's own format (`OWN_FORMAT`)."""

    candidates: TrainInPlace
    choice: Choice

    @property
    def name(self) -> str:
        return f"distill/{IN_PLACE}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"candidates": self.candidates, **self.choice.inputs}

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.choice.settings(student=True)

    def run(self, context: Context, folder: Path) -> None:
        trained = self.candidates.folder(context)
        self.choice.choose(context, folder, trained, lambda path: self.policy(context, path))
        if context.is_main:
            self._save(context, folder)

    def policy(self, context: Context, folder: Path) -> AdapterPolicy:
        """The student of a checkpoint's folder. One at a time: the process takes other weights with the next call."""
        train = self.candidates
        student = train.teacher.student(folder / "model.safetensors")
        statistics = Statistics(train.statistics.normaliser(context)).to(context.device)
        return AdapterPolicy(student, statistics, train.opened.shape, 1, IN_PLACE)

    def _save(self, context: Context, folder: Path) -> None:
        """The student in the policy's own format, and how far its chunks are from those of what is read back from there."""
        train = self.candidates
        if not train.teacher.description.saves:
            context.say("  the adapter has no save(folder): the student's weights are in model.safetensors, for its trained()")
            return
        policy, recording = self.policy(context, folder), train.recording
        seen = recording.at(recording.frames["validation"][:2])
        arrays = policy.teacher.arrays({name: torch.from_numpy(value) for name, value in seen.items()})
        count = len(next(iter(arrays.values())))
        told, _ = policy.teacher.request("save", {**arrays, "seeds": np.arange(4 * count).reshape(count, 4)},
                                         folder=str((folder / OWN_FORMAT).resolve()))  # fmt: skip
        write_json(folder / "saved.json", told)
        if told["difference"] is None:
            context.say("  the adapter has no reload(folder): that what it saved gives the same chunks was not checked")
            return
        scale = float(self.candidates._normaliser(context).centre_scale("action")[1].max())
        if told["difference"] > 1e-5 * max(scale, 1.0):
            raise ValueError(f"save: what was read back by reload() gives chunks that differ by {told['difference']:g}, "
                             "expected the same ones; see what save() leaves out")  # fmt: skip
        context.say(f"  saved in the policy's own format; read back, its chunks differ by {told['difference']:.1e}")


@dataclass(frozen=True)
class InPlaceStudent:
    """A policy to measure (distill.inputs.policies.MeasuredPolicy): the chosen checkpoint at one evaluation."""

    stage: ChooseInPlace
    name: str = IN_PLACE
    label: str = "Student, in place"
    kind: Kind = "student"
    num_steps: int | None = 1

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"student": self.stage}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def policy(self, context: Context) -> AdapterPolicy:
        return self.stage.policy(context, self.stage.folder(context))


def read_student(folder: Path) -> dict[str, Any]:
    """The config.json of a student that was fine-tuned in place. Raises ValueError where its adapter is not what it was."""
    told: dict[str, Any] = json.loads((folder / "config.json").read_text())
    adapter = told["adapter"]
    if not Path(adapter["file"]).is_file():
        raise ValueError(f"{folder}: its adapter {adapter['file']} is gone; put it back, or use {OWN_FORMAT} there by itself")
    if sha256_file(Path(adapter["file"])) != adapter["sha256"]:
        raise ValueError(f"{folder}: its adapter {adapter['file']} was changed since; put it back, or convert again")
    return told
