"""A training step against an earlier commit's, the growth of steps and set distances, and two processes against one.

    OMP_NUM_THREADS=1 python benchmarks/training.py --run runs/avoid-seed0 [--against 156b869] [--processes]

--run: a finished run of the default recipe, whose recording and hypotheses are trained on; it stays as it is. Both commits
train in processes of their own that take turns, five steps each, by the training loop itself: reading, draws, loss, gradient,
clipping, update and average. Times are processor time of one thread; a ratio is the median over rounds, above 1 where the
earlier commit is slower. --processes: the teacher's first 150 steps with one and with two processes (wall time).
About ten minutes. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from running import ROOT, growth, in_turns, keep, run_distill
from safetensors.torch import load_file
from torch import Tensor

from distill.config import Config
from distill.hypotheses.distances import distances, partner_distances
from envs import task_spec
from teachers.flow import FlowTeacher
from teachers.networks.observations import fake_observation

BEFORE = ("--teacher.batch-size", "256", "--teacher.learning-rate", "0.003")
"""The recipe up to 156b869."""

STAGES = {"teacher": ("demos",), "student": ("demos", "train/teacher", "starts", "teach", "sample")}
"""What of a run is there already when a network is trained."""

WORKER = """
import os, sys, time
from distill.training import loop
from distill.cli.main import main
scheduled, turn = loop.learning_rate, {"left": 0, "begin": 0.0, "steps": 1}
def learning_rate(settings, step):
    if turn["left"] == 0:
        print("TURN", (time.process_time() - turn["begin"]) / turn["steps"] * 1e3, flush=True)
        asked = sys.stdin.readline()
        if not asked:
            os._exit(0)
        turn.update(left=int(asked), steps=int(asked), begin=time.process_time())
    turn["left"] -= 1
    return scheduled(settings, step)
loop.learning_rate = learning_rate
main(sys.argv[1:])
"""
STEPS = 5


class Contestant:
    """A checkout that trains step by step when it is asked."""

    def __init__(self, tree: Path, run: Path, folder: Path, network: str, *flags: str) -> None:
        for stage in STAGES[network]:
            shutil.copytree(run / stage, folder / "run" / stage)
        stage = "teach" if network == "teacher" else "distill"
        command = [sys.executable, "-c", WORKER, stage, "--runs-dir", str(folder), "--name", "run", "--processes", "1",
                   "--student.objectives", "chamfer", *flags]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answer()

    def take_turn(self) -> float:
        """Milliseconds of processor time per step."""
        assert self.process.stdin is not None
        print(STEPS, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("TURN "):
                return float(line.split()[1])
        raise RuntimeError("training ended early; run flow2one with the same flags to see why")


def steps(run: Path, against: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds per step of both networks, then and now, at the recipes' and at equal batch sizes."""
    old = folder / "old"
    old.mkdir()
    archive = subprocess.run(["git", "archive", against], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(old)], input=archive, check=True)
    found: dict[str, Any] = {"against": against}
    for network in STAGES:
        made = {"before": (old, *BEFORE), "now": (ROOT, *BEFORE)}
        if network == "teacher":
            made["now, today's recipe"] = (ROOT,)
        contestants = {name: Contestant(tree, run, folder / f"{network} {name}", network, *flags)
                       for name, (tree, *flags) in made.items()}  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(-1, rounds):
            for name, contestant in contestants.items():
                milliseconds = contestant.take_turn()
                if number >= 0:
                    times[name].append(milliseconds)
        for contestant in contestants.values():
            contestant.process.communicate()  # the end of its input ends it
        found[network] = {name: {
            "ms": median(values), "least_ms": min(values),
            "ratio": median(before / now for before, now in zip(times["before"], values, strict=True)),
        } for name, values in times.items()}  # fmt: skip
    return found


def held_bytes(*tensors: Tensor, call: Any) -> int:
    """Bytes that a call keeps for its backward pass, besides its arguments."""
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        call(*tensors)
    for tensor in tensors:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def all_differences(first_BMD: Tensor, second_BKD: Tensor) -> Tensor:
    """The plain way: distances by a tensor of all differences."""
    return partner_distances(first_BMD[:, :, None], second_BKD[:, None])


def set_distances(rounds: int) -> dict[str, Any]:
    """Time and memory of all distances between M = K chunks with a gradient, 16 observations, against all differences."""
    found: dict[str, Any] = {}
    ways = {"now": distances, "all differences": all_differences}
    for name, cases in {
        "K": [(count, 16) for count in (4, 8, 16, 32, 64)], "T": [(16, horizon) for horizon in (4, 8, 16, 32, 64)]
    }.items():  # fmt: skip
        rows = []
        for count, horizon in cases:
            generator = torch.Generator().manual_seed(0)
            student, teacher = (torch.randn(16, count, horizon * 7, generator=generator) for _ in range(2))
            student.requires_grad_()

            def step(way: Any, first: Tensor = student, second: Tensor = teacher) -> None:
                way(first, second).sum().backward()

            rows.append({name: count if name == "K" else horizon, **in_turns(
                {way: partial(step, call) for way, call in ways.items()}, rounds)})  # fmt: skip
            for way, call in ways.items():
                rows[-1][f"{way}_bytes"] = held_bytes(student, teacher, call=call)
        sizes = [row[name] for row in rows]
        found[name] = {"rows": rows, "growth": {
            f"{way}, {what}": growth(sizes, [row[f"{way}_{unit}"] for row in rows])
            for way in ways for what, unit in (("time", "ms"), ("memory", "bytes"))
        }}  # fmt: skip
    return found


def batches(rounds: int) -> dict[str, Any]:
    """Time and memory of a teacher's loss and gradient with the batch."""
    shape = Config().shape(task_spec("avoid"))
    teacher, rows = FlowTeacher(shape).train(), []
    teacher.normaliser.fit({name: {"min": -np.ones(size), "max": np.ones(size)} for name, size in (
        ("state", shape.state_size), ("action", shape.action_size))})  # fmt: skip
    for size in (16, 32, 64, 128, 256, 512):
        observation, action = fake_observation(shape, size), torch.rand(size, shape.horizon, shape.action_size)
        draws = teacher.training_draws(size, torch.Generator().manual_seed(0))

        def step(inputs: Any = (observation, action, *draws)) -> None:
            teacher.zero_grad()
            teacher(*inputs).backward()

        weights = sum(value.nbytes for value in teacher.parameters())
        row = {"batch": size, **in_turns({"step": step}, rounds)}
        rows.append({**row, "bytes": held_bytes(call=lambda inputs=(observation, action, *draws): teacher(*inputs)) - weights})
    sizes = [row["batch"] for row in rows]
    return {"rows": rows, "growth": {"time": growth(sizes, [row["step_ms"] for row in rows]),
                                     "memory": growth(sizes, [row["bytes"] for row in rows])}}  # fmt: skip


def processes(run: Path, folder: Path) -> dict[str, Any]:
    """150 steps of the teacher with one and with two processes: seconds, losses and weights."""
    found: dict[str, Any] = {}
    for number in (1, 2):
        shutil.copytree(run / "demos", folder / f"{number}" / "demos")
        begin = time.perf_counter()
        run_distill("teach", "--runs-dir", str(folder), "--name", f"{number}", "--teacher.training-steps", "150",
                    "--evaluate.validation-starts", "2", "--teacher.candidates", "1", processes=number)  # fmt: skip
        curve = json.loads((folder / f"{number}/train/teacher/curve.json").read_text())
        cost = json.loads((folder / f"{number}/train/teacher/manifest.json").read_text())
        found[f"{number}"] = {"wall_s": cost["seconds"], "cpu_s": cost["cpu_seconds"], "command_s": time.perf_counter() - begin,
                              "losses": [row["loss"] for row in curve]}  # fmt: skip
    one, two = (load_file(folder / f"{number}/train/teacher/candidate-000150/model.safetensors") for number in (1, 2))
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    losses = [abs(a / b - 1) for a, b in zip(found["1"]["losses"], found["2"]["losses"], strict=True)]
    return {**found, "speed_up": found["1"]["wall_s"] / found["2"]["wall_s"], "largest_difference_of_losses": max(losses),
            "largest_difference_of_weights": apart}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--against", default="156b869")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"steps": steps(arguments.run.absolute(), arguments.against, arguments.rounds, folder)}
        result |= {"set_distances": set_distances(arguments.rounds // 4), "batch": batches(arguments.rounds // 2)}
        if arguments.processes:
            result["processes"] = processes(arguments.run, folder)
    keep(arguments.target, result, begin)
    for network in STAGES:
        for way, row in result["steps"][network].items():
            print(f"{network}, {way}: {row['ms']:.1f} ms a step, ratio {row['ratio']:.2f}")
    fits = {f"distances with {size}, {way}": fit for size, part in result["set_distances"].items()
            for way, fit in part["growth"].items()} | {f"step with the batch, {way}": fit
                                                       for way, fit in result["batch"]["growth"].items()}  # fmt: skip
    for way, fit in fits.items():
        print(f"{way}: exponent {fit['exponent']:.2f} from {fit['holds_from']} on")
    if arguments.processes:
        told = result["processes"]
        print(f"two processes: {told['speed_up']:.2f} times as fast, losses {told['largest_difference_of_losses']:.1e} apart")


if __name__ == "__main__":
    main()
