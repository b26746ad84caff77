"""What is measured of the policies of a run: roll-outs, the choice among checkpoints, sets of samples, and latency."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import envs
from distill.evaluation.diversity import mode_figures, summarise_modes
from distill.evaluation.external import AdapterPolicy
from distill.evaluation.fidelity import average, dimension_figures, set_fidelity
from distill.evaluation.policies import Policy, Seen, StudentPolicy, device_of, postprocess, sample_set
from distill.evaluation.real_time import CONDITIONS, Clock, MovingEpisode, delay_steps, outcome, run_moving
from distill.evaluation.rollouts import Episode, run_episodes, summarise, to_json
from distill.hypotheses.cache import episode_seed
from distill.store.manifest import write_json
from distill.worlds import rlbench as benchmark
from envs.cameras.specs import CameraSettings
from envs.panda.recording import stored_starts
from students.selection import ONE_SAMPLE, Selection
from teachers.networks.normalisation import Normaliser

if TYPE_CHECKING:
    from distill.stages.pipeline import Pipeline

CLIP_EPISODES = 3


def selection(pipeline: Pipeline, policy: Policy, moving: bool = False) -> Selection:
    """How a policy's samples are chosen from: a student's speed can buy that, a teacher would pay for every candidate."""
    config = pipeline.config
    students = config.moving_selection if moving else config.evaluate.student_selection
    return students if isinstance(policy, StudentPolicy) else ONE_SAMPLE


def roll_out(
    pipeline: Pipeline, policy: Policy, starts: np.ndarray, what: str, folder: Path, name: str, keep_actions: int = 0
) -> list[Episode]:
    """Every start once, over all processes. folder, name: where a simulator elsewhere writes its episodes down."""
    config, run = pipeline.config, pipeline.run
    if config.is_rlbench:
        seed = episode_seed(config.seed, what, 0, 0)
        return benchmark.roll_out(
            pipeline, policy, starts, seed, folder, name, selection(pipeline, policy), pipeline.monitor()
        )
    mine = run.my_share(range(len(starts)))
    with tqdm(total=len(mine), desc=f"{policy.name} ({what})", unit="episode", disable=not run.is_main) as bar:
        episodes = run_episodes(
            config.task, policy, starts, mine, config.evaluate.execution_horizon,
            episode_seed(config.seed, what, 0, 0), keep_actions, lambda done: bar.update(done - bar.n),
            selection=selection(pipeline, policy), monitor=pipeline.monitor(),
            cameras=pipeline.cameras,
        )  # fmt: skip
    return run.gather(episodes)


def choose_checkpoint(pipeline: Pipeline, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
    """Copy the checkpoint with the best mean of success rate and mode entropy on the validation starts.

    Loss is no proxy for either, and success alone would take a policy that knows one way only. Of equals the last.
    """
    config = pipeline.config
    starts = (
        pipeline.stored()["validation"].numpy() if config.is_rlbench
        else stored_starts(config.task, config.seed, "validation", config.evaluate.validation_starts)
    )  # fmt: skip
    candidates = sorted(trained.glob("candidate-*"))
    rows: list[dict[str, Any]] = []
    for path in candidates:
        summary = summarise(pipeline.spec, roll_out(pipeline, load(path), starts, "validation", folder, path.name))
        success = summary["successes"] / summary["episodes"]
        rows.append({"step": int(path.name.rsplit("-", 1)[1]), "success_rate": success, "entropy": summary["entropy"]})
    best = max(range(len(rows)), key=lambda row: (rows[row]["success_rate"] + (rows[row]["entropy"] or 0.0), row))
    for index, row in enumerate(rows):
        row["chosen"] = index == best
    if pipeline.run.is_main:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(candidates[best] / name, folder / name)
        write_json(folder / "validation.json", rows)


def draw_reference(pipeline: Pipeline, folder: Path) -> None:
    """Two independent sets of fresh teacher samples for every held-out observation, ``reference`` and ``floor``."""
    policy = pipeline.teacher_policy(pipeline.config.evaluate.teacher_steps[0])
    streams, count = ("reference", "floor"), len(next(iter(pipeline.held_out().values())))
    parts = [(stream, row, chunks_of(pipeline, policy, row, stream))
             for stream in streams for row in pipeline.run.my_share(range(count))]  # fmt: skip
    gathered = sorted(pipeline.run.gather(parts), key=lambda part: part[1])
    if pipeline.run.is_main:
        sets = {name: np.stack([chunks for stream, _, chunks in gathered if stream == name]) for name in streams}
        save_file({name: torch.from_numpy(chunks) for name, chunks in sets.items()}, str(folder / "reference.safetensors"))


def chunks_of(pipeline: Pipeline, policy: Policy, row: int, stream: str) -> np.ndarray:
    """Fresh samples `[S, T, A]`, raw units, for held-out observation `row`."""
    seen = {name: values[row : row + 1] for name, values in pipeline.held_out().items()}
    generator = torch.Generator().manual_seed(episode_seed(pipeline.config.seed, stream, row, 0))
    return chunks_at(pipeline, policy, seen, generator)


def chunks_at(pipeline: Pipeline, policy: Policy, seen: Seen, generator: torch.Generator) -> np.ndarray:
    """As many samples `[S, T, A]`, raw units, as fidelity is measured with, for one observation."""
    samples, executed = pipeline.config.evaluate.fidelity_samples, pipeline.config.evaluate.execution_horizon
    chunks_STA = sample_set(policy, seen, generator, samples, selection(pipeline, policy), executed)
    return postprocess(policy, chunks_STA)


def measure_policy(pipeline: Pipeline, folder: Path, policy: Policy, normaliser: Normaliser | None = None) -> None:
    """Rollouts from the stored test starts, and the policy's sets against the reference's."""
    episodes = roll_out(pipeline, policy, pipeline.stored()["test"].numpy(), "test", folder, "test", CLIP_EPISODES)
    sets = set_figures(pipeline, policy, normaliser)
    if pipeline.run.is_main:
        write_json(folder / "result.json", {
            "policy": policy.name, "nfe": policy.evaluations, "parameters": parameters_of(policy),
            "summary": summarise(pipeline.spec, episodes), "episodes": to_json(episodes), **sets,
        })  # fmt: skip
        if pipeline.config.is_rlbench:
            benchmark.write_eval_info(pipeline, folder, episodes, "test")


def set_figures(pipeline: Pipeline, policy: Policy, normaliser: Normaliser | None = None) -> dict[str, Any]:
    """How a policy's sets are like the reference's, on every held-out observation; on every process the same.

    normaliser: whose action space they are compared in; the policy's own unless another is given.
    """
    run = pipeline.run
    reference = load_file(str(pipeline.reference() / "reference.safetensors"))
    rows = run.my_share(range(len(reference["reference"])))
    drawn = {row: torch.from_numpy(chunks_of(pipeline, policy, row, policy.name)) for row in rows}
    normalise = (normaliser or policy.module.normaliser).normalise_action  # type: ignore[union-attr]
    device = device_of(policy)
    weights_A = torch.tensor(pipeline.spec.action.weights, device=device)
    parts, modes = [], []
    for row in rows:
        sets = [normalise(chunks.to(device))[None]  # type: ignore[operator]
                for chunks in (drawn[row], reference["reference"][row], reference["floor"][row])]  # fmt: skip
        parts.append((1, set_fidelity(sets[0], sets[1], weights_A)))
        modes.append(mode_figures(sets[0][0], sets[1][0], sets[2][0], weights_A))
    parts, modes = run.gather(parts), run.gather(modes)
    shown = widest(reference["reference"])
    every = sorted(run.gather([(row, drawn[row].numpy()) for row in rows]), key=lambda each: each[0]) if normaliser else []
    dimensions = {} if normaliser is None else {"dimensions": dimension_figures(
        torch.from_numpy(np.stack([chunks for _, chunks in every])), reference["reference"], pipeline.spec.action.names)}
    planned = run.gather([np.round(drawn[shown].numpy()[:32], 4).tolist()] if shown in drawn else [])
    return {
        "fidelity": {**average(parts), "observations": len(parts), "samples": pipeline.config.evaluate.fidelity_samples},
        "observation_modes": summarise_modes(modes), "planned_set": planned[0], "planned_at": shown,
        **dimensions,
    }  # fmt: skip


def widest(chunks_FSTA: Tensor) -> int:
    """The one of `F` observations at which a policy's `S` chunks differ most in their first two numbers, x and y."""
    return int(chunks_FSTA[..., :2].var(dim=1, correction=0).mean((1, 2)).argmax())


def parameters_of(policy: Policy) -> int | None:
    """Numbers in a policy's networks; of an adapter's what its worker counted, None where it could not."""
    if isinstance(policy, AdapterPolicy):
        return policy.teacher.described.parameters
    return sum(value.numel() for value in policy.module.parameters())


def measure_latency(pipeline: Pipeline, folder: Path) -> None:
    """All policies side by side, in the first process alone."""
    from distill.evaluation.latency import measure

    if pipeline.run.is_main:
        settings = pipeline.config.evaluate
        measured = measure(
            pipeline.policies(), pipeline.held_out(), settings.latency_calls, settings.latency_warmup,
            settings.execution_horizon, pipeline.config.seed, partial(selection, pipeline),
        )  # fmt: skip
        if pipeline.cameras is not None and not pipeline.config.is_rlbench:
            # every policy of a run looks through the same cameras
            read_ms = reading_ms(pipeline.config.task, pipeline.cameras, settings.latency_calls, settings.latency_warmup)
            for latency in measured.values():
                latency["read_ms"] = read_ms
        write_json(folder / "latency.json", measured)


def reading_ms(task: str, cameras: CameraSettings, calls: int, warmup: int) -> float:
    """Median time [ms] in which the simulated cameras give one observation. It is the simulator's: a robot's is another."""
    env = envs.make(task, cameras=cameras)
    try:
        env.reset(seed=0)
        times = []
        for _ in range(warmup + calls):
            begin = perf_counter_ns()
            env.see()
            times.append((perf_counter_ns() - begin) / 1e6)
    finally:
        env.close()
    return float(np.median(times[warmup:]))


def measure_moving(pipeline: Pipeline, folder: Path, name: str) -> None:
    """One policy in a world that goes on while it computes, at every time of `moving`, undisturbed and disturbed."""
    config, run, spec = pipeline.config, pipeline.run, pipeline.spec
    policy = next(policy for policy in pipeline.policies() if policy.name == name)
    every = config.moving.execution_horizon or config.evaluate.execution_horizon
    starts = pipeline.stored()["test"].numpy()[: config.moving.starts or None]
    mine, seed = run.my_share(range(len(starts))), episode_seed(config.seed, "moving", 0, 0)
    done: dict[Clock, dict[str, list[MovingEpisode]]] = {}
    times = call_times(pipeline, name)
    for time in times:
        clock = Clock(delay_steps(time["latency_ms"], spec.dt_s), every, config.moving.patience)
        time |= {"delay_steps": clock.delay, "period_steps": clock.period}
        if clock in done:  # times that take as many control steps are one and the same roll-out
            continue
        done[clock] = {}
        for condition in CONDITIONS:
            title = f"{name} ({clock.delay} steps late, {condition})"
            with tqdm(total=len(mine), desc=title, unit="episode", disable=not run.is_main) as bar:
                episodes = run_moving(
                    config.task, policy, starts, mine, clock, seed, condition == "disturbed",
                    progress=partial(_advance_to, bar), selection=selection(pipeline, policy, moving=True),
                    cameras=pipeline.cameras,
                )  # fmt: skip
            done[clock][condition] = sorted(run.gather(episodes), key=lambda each: each.episode.index)
    if run.is_main:
        for time in times:
            rolled = done[Clock(time["delay_steps"], every, config.moving.patience)]
            time |= {condition: [outcome(each) for each in rolled[condition]] for condition in CONDITIONS}
        write_json(folder / "result.json", {
            "policy": name, "dt_s": spec.dt_s, "every_steps": every, "patience": config.moving.patience, "times": times,
        })  # fmt: skip


def _advance_to(bar: tqdm, count: int) -> None:
    bar.update(count - bar.n)


def call_times(pipeline: Pipeline, name: str) -> list[dict[str, Any]]:
    """The times [ms] a call of the policy is given: the stated ones, then the measured one (of the latency stage) scaled."""
    moving = pipeline.config.moving
    times: list[dict[str, Any]] = [{"scale": None, "latency_ms": float(stated)} for stated in moving.latency_ms]
    if moving.measures:
        measured = json.loads((pipeline.latency() / "latency.json").read_text())
        scales = [float(scale) for scale in moving.time_scales]
        if moving.scale_to_clock:
            students = measured[pipeline.config.student.default]["median_ms"]
            scales.append(1000 * pipeline.spec.dt_s / students)
        times += [{"scale": scale, "latency_ms": scale * measured[name]["median_ms"]} for scale in scales]
    return times
