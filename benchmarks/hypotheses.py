"""Hypotheses per second against a plain loop over chunks, and how time and memory grow; one thread, processor time.

    OMP_NUM_THREADS=1 python benchmarks/hypotheses.py --run runs/avoid-seed0 [--processes]

--run: a finished run, whose teacher and starts are read. The plain loop draws one chunk after another and evaluates encoder
and network for it at every solver step; `encoded once` is the same with the encoder outside the steps. They take turns with
the cache's own drawing, K = 12, the cache's solver and steps. --processes: the stage `sample` by one and by two processes,
whose shards must be the same to the last byte. About five minutes.
Writes benchmarks/results/hypotheses.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import ROOT, growth, in_turns, keep, run_distill
from torch import Tensor

from distill.hypotheses.cache import CachePlan, draw_hypotheses, hypothesis_seeds, noise_of, write_shards
from envs.specs import STATE
from teachers import load_teacher
from teachers.contract import Observation
from teachers.flow import FlowTeacher
from teachers.solvers import integrate

HYPOTHESES, BATCH, CPU = 12, 64, torch.device("cpu")


def states(teacher: FlowTeacher, frames: np.ndarray) -> np.ndarray:
    """A state history `[n, O, S]` per frame, within the range of the training data."""
    low, high = (value.numpy() for value in (teacher.normaliser.state_low, teacher.normaliser.state_high))
    share = np.stack([np.random.default_rng(int(frame)).uniform(size=(teacher.shape.observation_steps, len(low)))
                      for frame in frames])  # fmt: skip
    return (low + share * (high - low)).astype(np.float32)


def one_by_one(teacher: FlowTeacher, observation: Observation, noise_BKTA: Tensor, num_steps: int, once: bool) -> Tensor:
    """Chunks `[B, K, T, A]`, each from calls of its own; once: its encoder runs once, not at every solver step."""
    drawn = []
    with torch.no_grad():
        for row, noise_KTA in enumerate(noise_BKTA):
            one = {name: value[row : row + 1] for name, value in observation.items()}
            for noise_TA in noise_KTA:
                encoded = teacher.encode(one)
                drawn.append(integrate(
                    lambda x, t, one=one, encoded=encoded: teacher.velocity(x, t, encoded if once else teacher.encode(one)),
                    noise_TA[None], num_steps, teacher.solver,
                ))  # fmt: skip
    return teacher.normaliser.unnormalise_action(torch.cat(drawn).view_as(noise_BKTA))


def against_loop(teacher: FlowTeacher, rounds: int) -> dict[str, Any]:
    """Milliseconds per hypothesis, and the largest difference of chunks in half ranges of an action."""
    steps, frames = FlowTeacher.CACHE_STEPS, np.arange(BATCH)
    seeds, observation = hypothesis_seeds(0, frames, HYPOTHESES), {STATE: torch.from_numpy(states(teacher, frames))}
    few = {name: value[:2] for name, value in observation.items()}  # the loop's time does not depend on how many it draws
    noise = noise_of(seeds[:2], teacher.noise_shape(steps))
    found: dict[str, Any] = {"hypotheses": HYPOTHESES, "batch": BATCH, "solver_steps": steps}
    for name, once in (("plain loop", False), ("encoded once", True)):
        calls = {"cache": partial(draw_hypotheses, teacher, observation, seeds, steps, CPU),
                 "loop": partial(one_by_one, teacher, few, noise, steps, once)}  # fmt: skip
        times = in_turns(calls, rounds)
        cache, loop = times["cache_ms"] / BATCH / HYPOTHESES, times["loop_ms"] / 2 / HYPOTHESES
        found[name] = {"cache_ms": cache, "loop_ms": loop, "ratio": times["ratio"] * BATCH / 2}
    raw = [teacher.normaliser.normalise_action(each)
           for each in (calls["cache"]()[:2], one_by_one(teacher, few, noise, steps, False))]  # fmt: skip
    return {**found, "per_second": 1e3 / found["plain loop"]["cache_ms"],
            "largest_difference": float((raw[0] - raw[1]).abs().max())}  # fmt: skip


def by_count(teacher: FlowTeacher, rounds: int) -> dict[str, Any]:
    """Time per hypothesis with K and with the observations of a call."""
    found: dict[str, Any] = {}
    for name, cases in (("K", [(32, count) for count in (1, 2, 4, 8, 16, 32)]),
                        ("batch", [(size, 12) for size in (1, 2, 4, 8, 16, 32, 64)])):  # fmt: skip
        rows = []
        for size, count in cases:
            frames = np.arange(size)
            seeds, observation = hypothesis_seeds(0, frames, count), {STATE: torch.from_numpy(states(teacher, frames))}
            call = partial(draw_hypotheses, teacher, observation, seeds, FlowTeacher.CACHE_STEPS, CPU)
            milliseconds = in_turns({"call": call}, rounds)["call_ms"] / size / count
            rows.append({name: count if name == "K" else size, "ms": milliseconds})
        found[name] = {"rows": rows, "growth": growth([row[name] for row in rows], [row["ms"] for row in rows])}
    return found


def write(teacher: FlowTeacher, observations: int, shard_size: int) -> None:
    """Draw a cache of two hypotheses per observation in two steps, and print milliseconds per hypothesis and peak memory."""
    plan = CachePlan(np.arange(observations), 2, 2, shard_size, BATCH, 0)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        write_shards(Path(folder), teacher, teacher.normaliser, plan, lambda frames: {STATE: states(teacher, frames)},
                     range(plan.num_shards), CPU)  # fmt: skip
        spent = time.process_time() - begin
    # of this program only: ru_maxrss would begin with what its parent had
    peak_kb = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(spent / observations / 2 * 1e3, int(peak_kb) / 1024)


def by_data(policy: Path) -> dict[str, Any]:
    """Time per hypothesis and peak memory with the number of observations, 256 a shard, each in a process of its own."""
    rows = []
    for observations in (1024, 2048, 4096, 8192):
        command = [sys.executable, __file__, "--run", str(policy), "--write", str(observations)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        milliseconds, peak_mb = map(float, told)
        rows.append({"observations": observations, "shards": observations // 256, "ms": milliseconds, "peak_mb": peak_mb})
    sizes = [row["observations"] for row in rows]
    return {"rows": rows, "growth": {"time per hypothesis": growth(sizes, [row["ms"] for row in rows]),
                                     "memory": growth(sizes, [row["peak_mb"] for row in rows])}}  # fmt: skip


def processes(run: Path, folder: Path) -> dict[str, Any]:
    """The stage `sample` of this run again, by one and by two processes."""
    found: dict[str, Any] = {}
    recipe = ["--teacher.path", str((run / "teach").absolute())]
    for number in (1, 2):
        target = folder / f"{number}"
        shutil.copytree(run / "demos", target / "demos")
        run_distill("sample", "--runs-dir", str(folder), "--name", f"{number}", *recipe, processes=number)
        found[f"{number}"] = {name: value for name, value in json.loads((target / "sample/manifest.json").read_text()).items()
                              if name in ("seconds", "cpu_seconds")}  # fmt: skip
    shards = [{path.name: path.read_bytes() for path in (folder / f"{number}/sample").glob("*.safetensors")}
              for number in (1, 2)]  # fmt: skip
    return {**found, "identical": shards[0] == shards[1], "shards": len(shards[0]),
            "speed_up": found["1"]["seconds"] / found["2"]["seconds"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--write", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/hypotheses.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(arguments.run / "teach")
    teacher.use_solver(FlowTeacher.CACHE_SOLVER)
    if arguments.write:
        write(teacher, arguments.write, 256)
        return
    begin = time.perf_counter()
    result: dict[str, Any] = {"against_loop": against_loop(teacher, arguments.rounds), **by_count(teacher, arguments.rounds),
                              "data": by_data(arguments.run)}  # fmt: skip
    if arguments.processes:
        with tempfile.TemporaryDirectory() as name:
            result["processes"] = processes(arguments.run, Path(name))
    keep(arguments.target, result, begin)
    for name in ("plain loop", "encoded once"):
        row = result["against_loop"][name]
        print(f"{name}: {row['loop_ms']:.2f} ms a hypothesis, cache {row['cache_ms']:.3f}: {row['ratio']:.1f} times as fast")
    fits = {name: result[name]["growth"] for name in ("K", "batch")} | result["data"]["growth"]
    for name, fit in fits.items():
        print(f"{name}: exponent {fit['exponent']:.2f} from {fit['holds_from']} on")
    if arguments.processes:
        told = result["processes"]
        print(f"two processes: identical {told['identical']}, {told['speed_up']:.2f} times as fast")


if __name__ == "__main__":
    main()
