"""The stage `train/in_place`: an external policy's own network, fine-tuned to one evaluation.

It is trained in the adapter's interpreter (teachers/adapters/training.py), in a process of its own, and resumes in a new one
when that process dies. When flow2one runs in several processes, each has such a process: they compute parts of every gradient.
Observations, hypotheses, the order of batches and the choice among checkpoints are ours.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from tqdm import tqdm

import distill.hypotheses.distances as losses
from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.distances import chunk_weights
from distill.inputs.recorded import Opened
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input
from distill.stages.in_place.config import IN_PLACE, InPlaceConfig, loss_terms, rate_for
from distill.stages.in_place.encode import EncodeObservations
from distill.stages.in_place.source import TrainingObservations
from distill.stages.sample import SampleHypotheses
from distill.store.manifest import COST_FOLDER, sha256_file, write_json
from distill.training.ema import average_weight
from distill.training.loop import RESUME, batch_indices, candidate_steps, finish, learning_rate, step_generator, with_candidates
from teachers.adapters.teacher import AdapterGone, AdapterTeacher
from teachers.networks.normalisation import Normaliser

T = TypeVar("T")

STARTS, LOG_EVERY, SAVE_EVERY_S, MESSAGE_S = 4, 50, 30.0, 2.0
"""Processes that may die during one training; steps of a point of the loss curve; seconds between two writings of what a resume
needs; seconds that one message to the process should take, so that the progress bar moves."""


@dataclass(frozen=True)
class TrainInPlace(FolderStage):
    """opened: the policy, behind an adapter; source: observations and hypotheses it is trained on; weights: `[A]` of distances.

    encoded: the observations' conditions on disk; None: they are computed again in every step, which gives the same student.
    """

    opened: Opened
    source: TrainingObservations
    encoded: EncodeObservations | None
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
    def read(self) -> tuple[Input, ...]:
        return (*super().read, *((self.encoded,) if self.encoded else ()))

    @property
    def settings(self) -> Mapping[str, Any]:
        # how the same gradient is computed, and from where, changes no student
        student = {name: value for name, value in asdict(self.config).items() if name not in ("at_once", "conditions_gb")}
        return {"in_place": student, "seed": self.seed, "execution_horizon": self.execution_horizon, "weights": self.weights}

    @property
    def hypotheses(self) -> SampleHypotheses:
        """What it is trained on."""
        return self.source.hypotheses

    @property
    def statistics(self) -> TeacherSource:
        """Whose action space sets are compared in."""
        return self.source.statistics

    @property
    def teacher(self) -> AdapterTeacher:
        assert isinstance(self.opened.policy, AdapterTeacher)
        return self.opened.policy

    def normaliser(self, context: Context) -> Normaliser:
        return self.source.normaliser(context)

    def run(self, context: Context, folder: Path) -> None:
        if self.config.batch_size < context.share.world:
            raise ValueError(f"in_place.batch_size: got {self.config.batch_size}, fewer than the {context.share.world} "
                             "processes; raise it, or start fewer")  # fmt: skip
        for start in range(STARTS):
            opened: list[AdapterTeacher] = []
            try:
                together(context, lambda: opened.append(self.teacher.another()))  # noqa: B023 - called at once
                curve = self._train(context, opened[0], folder)
                break
            except AdapterGone as error:
                if start == STARTS - 1:
                    raise
                context.say(f"  {error}; training resumes in a new process")
            finally:
                for worker in opened:
                    worker.close()
        if context.is_main:
            finish(folder, curve)
        context.wait()

    def load(self, folder: Path) -> Path:
        return with_candidates(folder, self.config)

    def _train(self, context: Context, worker: AdapterTeacher, folder: Path) -> list[dict[str, float]]:
        """Train from wherever `folder` says it stopped. Returns the loss curve."""
        cache = self.source.cache(context)
        state, rate = self._begin(context, worker, folder, cache)
        config = replace(self.config, learning_rate=rate)
        step, curve = int(state.get("step", 0)), list(state.get("curve", []))
        total, counted = state.get("summed", (0.0, 0))
        together(context, lambda: self._observe(context, worker, cache))
        marks, pace, saved, spent = candidate_steps(config), 1, time.monotonic(), 0.0
        account = folder / COST_FOLDER / f"{time.time_ns()}-{os.getpid()}-worker.json"
        account.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=config.training_steps, initial=step, desc=IN_PLACE, unit="step", disable=not context.is_main)
        with bar:
            while step < config.training_steps:
                ends = [step + pace, (step // LOG_EVERY + 1) * LOG_EVERY, config.training_steps]
                last = min([*ends, *(mark for mark in marks if mark > step)])
                told = together(context, lambda: self._steps(worker, step, last, len(cache), config))  # noqa: B023 - called at once
                pace = max(1, round(MESSAGE_S * (last - step) / max(told[0]["seconds"], 1e-6)))
                loss = sum(each["loss"] for each in told)
                total, counted = total + loss * (last - step), counted + last - step
                spent += told[context.share.rank]["cpu_seconds"]
                bar.update(last - step)
                step = last
                if step % LOG_EVERY == 0 or step == config.training_steps:
                    curve.append({"step": step, "loss": total / counted})
                    if context.is_main:
                        context.log(f"distill/{IN_PLACE}", curve[-1])
                    bar.set_postfix(loss=f"{total / counted:.4f}")
                    total, counted = 0.0, 0
                if step in marks or time.monotonic() - saved > SAVE_EVERY_S:
                    if context.is_main:
                        written = {"step": step, "curve": curve, "summed": (total, counted)}
                        self._write(worker, folder, step, step in marks, written)
                    write_json(account, {"seconds": 0.0, "cpu_seconds": spent})
                    saved = time.monotonic()
        return curve

    def _begin(
        self, context: Context, worker: AdapterTeacher, folder: Path, cache: HypothesisDataset
    ) -> tuple[dict[str, Any], float]:
        """Tell the process what to train; returns what was written last, and the learning rate."""
        config, shape, share = self.config, self.opened.shape, context.share
        centre, scale = (np.broadcast_to(each.numpy(), shape.action_size)
                         for each in self.normaliser(context).centre_scale("action"))  # fmt: skip
        weights = chunk_weights(torch.tensor(self.weights), shape.horizon, self.execution_horizon, config.unexecuted_weight)
        terms = loss_terms(config.objective)
        arrays = {"weights": weights.numpy(), "centre": centre, "scale": scale}
        conditions: dict[str, Any] | str = ""
        if self.encoded is not None:
            frames = cache.batch([0])["frame_index"].numpy()
            seen = self.source.observe(context, shape)(frames)
            arrays |= worker.arrays({name: torch.from_numpy(value) for name, value in seen.items()})
            conditions = {"folder": str(self.encoded.folder(context).resolve()), "shard_size": self.encoded.shard_size}
        store = context.on_main(lambda: str((folder / f".processes-{uuid.uuid4().hex}").resolve()))
        try:
            told = together(context, lambda: worker.request(
                "train", arrays, losses=losses.__file__, resume=str((folder / RESUME).resolve()), terms=terms,
                paired=any(name == "paired" for _, name in terms), samples=config.num_latents, at_once=config.at_once,
                weight_decay=config.weight_decay, autocast="bfloat16" if config.bfloat16 else "", conditions=conditions,
                starting_noises=config.starting_noises, seed=self.seed, rows=len(cache), store=store, rank=share.rank,
                world=share.world,
            )[0])[0]  # fmt: skip
        finally:  # also where a process died: it must not stay among the results
            Path(store).unlink(missing_ok=True)
        rate = config.learning_rate or rate_for(told["weights"])
        processes = f" in {share.world} processes" if share.world > 1 else ""
        context.say(f"  {told['weights']} weights are trained{processes}, learning rate {rate:.1e}")
        return dict(told["state"]), rate

    def _observe(self, context: Context, worker: AdapterTeacher, cache: HypothesisDataset) -> None:
        """Give it all hypotheses and, where conditions are not on disk, all observations."""
        observe, rows = self.source.observe(context, self.opened.shape), len(cache)
        for first in range(0, rows, self.hypotheses.config.batch_size):
            block = cache.batch(range(first, min(first + self.hypotheses.config.batch_size, rows)))
            arrays = {"hypotheses": block["hypotheses"].half().numpy(), "seeds": block["seed"].numpy()}
            if self.encoded is None:
                seen = {name: torch.from_numpy(value) for name, value in observe(block["frame_index"].numpy()).items()}
                arrays |= worker.arrays(seen)
            worker.request("observe", arrays, first=first)

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


def together(context: Context, call: Callable[[], T]) -> list[T]:
    """What `call` returns in every process, by rank. Where one fails, all fail.

    Raises AdapterGone in all processes where an adapter's process is gone in any: the others' gave up without it. Raises
    ValueError where an adapter fails in another way.
    """
    results: list[T] = []
    gone, wrong = "", ""
    try:
        results.append(call())
    except AdapterGone as error:
        gone = str(error)
    except ValueError as error:
        wrong = str(error)
    told = context.gather([(results, gone, wrong)])
    for number, kind in ((1, AdapterGone), (2, ValueError)):
        first = next((each[number] for each in told if each[number]), "")
        if first:
            raise kind(first)
    return [each[0][0] for each in told]
