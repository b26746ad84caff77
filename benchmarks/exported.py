"""An exported student in numpy against the same student in PyTorch: the same success, and how long a call takes.

    python benchmarks/exported.py --run runs/avoid-seed0 --exported exported/avoid

Rolls both out from the same stored test starts with the same latents: `distill.evaluation.rollouts` for PyTorch,
flow2one_runtime for ONNX Runtime. Then times one evaluation of the network (batch 1, the selection's number of plans)
in every format that the folder holds, and the whole call of both, interleaved, one thread each. Writes
benchmarks/results/exported.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import interleaved

import envs
from distill.cli.measured import inference_settings_of
from distill.evaluation.policies import StudentPolicy
from distill.evaluation.rollouts import episode_generator, query_policy, run_episodes, summarise
from distill.evaluation.statistics import wilson_interval
from distill.hypotheses.cache import episode_seed
from distill.store.machine import hardware
from envs.panda.recording import stored_starts
from envs.specs import STATE
from flow2one_runtime import Student
from students import load_student
from students.export.graph import FILES, StudentGraph, onnx_call
from students.selection import Memory

ROOT = Path(__file__).resolve().parents[1]


def run_episode(student: Student, env: Any, start: np.ndarray, draw: Callable[[int], np.ndarray]) -> dict[str, Any]:
    """One episode from a start, with these latents."""
    observation, info = env.reset(options={"start": start})
    student.reset()
    student.draw, steps, ended = draw, 0, False
    while not ended:
        observation, _, terminated, truncated, info = env.step(student.select_action(observation))
        steps, ended = steps + 1, terminated or truncated
    return {"success": info["is_success"], "mode": info["mode"], "steps": steps}


def drawer(generator: torch.Generator, shape: Sequence[int]) -> Callable[[int], np.ndarray]:
    return lambda count: torch.randn(count, *shape, generator=generator).numpy()


def summary(episodes: list[dict[str, Any]], modes: int) -> dict[str, Any]:
    solved = sum(bool(each["success"]) for each in episodes)
    return {"starts": len(episodes), "successes": solved, "interval": wilson_interval(solved, len(episodes)),
            "modes_reached": len({each["mode"] for each in episodes if each["success"]}), "modes_total": modes}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run that the student was exported from")
    parser.add_argument("--name", default="chamfer", help="of the student in it")
    parser.add_argument("--exported", type=Path, required=True, help="the exported folder")
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--calls", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    student = load_student(arguments.run / "distill" / arguments.name)
    policy, task = StudentPolicy(student, arguments.name), student.shape.task
    run_time = inference_settings_of(arguments.run / "distill" / arguments.name, student.shape.horizon)
    selection, executed = run_time.selection, run_time.execution_horizon
    seed, starts = episode_seed(0, "test", 0, 0), stored_starts(task, 0, "test", arguments.starts)
    spec, exported = envs.task_spec(task), Student.load(arguments.exported, backend="onnxruntime")
    latent_shape = exported.exported.latents.shape

    rolled = run_episodes(task, policy, starts, range(len(starts)), executed, seed, selection=selection)
    ours = [{"success": each.success, "mode": each.mode, "steps": each.steps} for each in rolled]
    env, theirs = envs.make(task), []
    for index, start in enumerate(starts):
        theirs.append(run_episode(exported, env, start, drawer(episode_generator(seed, index), latent_shape)))
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))

    state = torch.tensor(np.repeat(starts[:1, None, : student.shape.state_size], student.shape.observation_steps, 1)).float()
    observation, latents = {STATE: state}, torch.randn(1, selection.candidates, *student.latent_shape)
    graph = StudentGraph(student).eval()
    network: dict[str, Callable[[], object]] = {"pytorch": torch.inference_mode()(partial(graph, observation, latents))}
    for name in json.loads((arguments.exported / "export.json").read_text())["formats"]:
        path = arguments.exported / FILES[name]
        if name == "onnx":
            network[name] = partial(onnx_call(path), observation, latents)
        elif name == "aoti":
            network[name] = partial(torch._inductor.aoti_load_package(str(path)), observation, latents)
        else:
            network[name] = torch.inference_mode()(partial(torch.export.load(path).module(), observation, latents))
    generator, seen = torch.Generator().manual_seed(0), {STATE: state.numpy()}
    exported.draw = drawer(generator, latent_shape)
    times = interleaved(
        {f"network, {name}": call for name, call in network.items()} | {
            "whole call, pytorch": partial(query_policy, policy, seen, [generator], selection, [Memory()], executed),
            "whole call, numpy + onnx": partial(exported.predict_action_chunk, {STATE: state.numpy()[0]}),
        }, arguments.calls,
    )  # fmt: skip
    results = {
        "task": task, "student": arguments.name, "parameters": sum(value.numel() for value in student.parameters()),
        "selection": vars(selection), "hardware": hardware(None), "threads": 1, "load_average": round(os.getloadavg()[0], 2),
        "rollouts": {"pytorch": summary(ours, len(spec.modes)), "numpy + onnx": summary(theirs, len(spec.modes)),
                     "same_outcome_way_and_steps": same},
        "pytorch_entropy": summarise(spec, rolled)["entropy"], "times": times,
        "ratios_of_cpu_ms": {
            **{name: times["network, pytorch"]["cpu_ms"] / times[f"network, {name}"]["cpu_ms"] for name in network},
            "whole call": times["whole call, pytorch"]["cpu_ms"] / times["whole call, numpy + onnx"]["cpu_ms"],
        },
    }  # fmt: skip
    (ROOT / "benchmarks/results/exported.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: results[key] for key in ("rollouts", "ratios_of_cpu_ms")}, indent=1))
    for name, each in times.items():
        wall = f"{each['median_ms']:.3f} ms (p95 {each['p95_ms']:.3f}), {each['hz']:.0f} Hz"
        print(f"{name:28} {wall}, {each['cpu_ms']:.3f} ms of processor")


if __name__ == "__main__":
    main()
