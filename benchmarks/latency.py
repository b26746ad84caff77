"""How much faster is a one-step student than its teacher when both run in their best mode on this machine?

    python benchmarks/latency.py [--presets avoid detour_points] [--modes onnxruntime openvino] [--calls 500]
    python benchmarks/latency.py --rollouts runs/avoid-seed0 runs/detour_points-seed0

Networks of each preset's sizes with random weights, as times do not depend on them. In every mode, interleaved: the teacher at
50 and 10 steps, the student at one sample and at the samples and the selection of its success figure, and its bare network at
the same numbers of samples. With --rollouts the students of finished runs are rolled out from the same test starts with the
same random numbers, eagerly and in the first mode. Writes benchmarks/results/latency.json, where rows of other presets and runs
stay, and the tables in docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from perception import look, policies
from running import ROOT, interleaved

from distill.cli.command import read_command
from distill.cli.measured import inference_settings_of
from distill.evaluation.policies import Policy, StudentPolicy, TeacherPolicy, preprocess
from distill.evaluation.rollouts import query_policy, run_episodes
from distill.evaluation.run_modes import EAGER, in_mode, parity
from distill.evaluation.statistics import mcnemar_p, paired_difference
from distill.hypotheses.cache import episode_seed
from distill.store.machine import hardware
from envs.panda.recording import stored_starts
from students import load_student
from students.runtime.calls import NetworkInMode, TeacherInMode
from students.runtime.modes import MODES
from students.selection import SINGLE_SAMPLE, Memory, Selection

RESULTS, PAGE = ROOT / "benchmarks/results/latency.json", ROOT / "docs/speed.md"
FEWEST_ROUNDS = 60
BEGIN, END = "<!-- benchmarks/latency.py -->", "<!-- end -->"


def calls_of(preset: str, mode: str) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """The calls of one preset in one mode by name, and the parity of its policies."""
    flags = [flag for name in preset.split("+") for flag in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    _, _, config = read_command(flags)
    seen = {name: values[:1] for name, values in look(config).items()}
    teacher, student = policies(config, look(config))
    assert isinstance(teacher, TeacherPolicy) and isinstance(student, StudentPolicy)
    selection, executed = config.evaluate.student_selection, config.evaluate.execution_horizon
    several = selection.candidates if selection.uses_candidates else 1
    wanted: dict[str, tuple[Policy, Selection]] = {
        "teacher, 50 steps": (teacher, SINGLE_SAMPLE), "teacher, 10 steps": (replace(teacher, num_steps=10), SINGLE_SAMPLE),
        "student, 1 sample": (student, SINGLE_SAMPLE), f"student, {several} samples": (student, selection),
    }  # fmt: skip
    generator, shared = torch.Generator().manual_seed(0), dict[int, TeacherInMode]()
    calls: dict[str, Callable[[], object]] = {}
    alike: dict[str, Any] = {}
    for name, (policy, chosen) in wanted.items():
        if mode != EAGER:
            ours = in_mode(policy, mode, chosen, executed, shared)
            alike[name], policy = parity(ours, seen, chosen, executed, 8), ours
        calls[name] = partial(query_policy, policy, seen, [generator], chosen, [Memory()], executed)
    for count in dict.fromkeys((1, several)):
        latents = torch.randn(count, *student.module.latent_shape)
        if mode == EAGER:
            observation = preprocess(student, seen)
            calls[f"network, {count} samples"] = partial(_network, student, observation, latents)
        else:
            network = NetworkInMode(student.module, MODES[mode], count)
            calls[f"network, {count} samples"] = partial(network, seen, latents.numpy())
    return calls, {"parity": alike, "samples": several}


@torch.inference_mode()
def _network(student: StudentPolicy, observation: Any, latents: torch.Tensor) -> torch.Tensor:
    return student.head(student.encode(observation), latents[None])


def measure(preset: str, modes: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row per mode, all modes timed in the same rounds; teachers of 50 steps set the number of rounds."""
    every: dict[str, Callable[[], object]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for mode in [EAGER, *modes]:
        calls, facts[mode] = calls_of(preset, mode)
        every |= {f"{mode}|{name}": call for name, call in calls.items()}
    slow = {name: call for name, call in every.items() if "50 steps" in name}
    print(f"{preset}: timing", flush=True)
    # teachers need fewer calls for a median; the student's p99 needs many
    times = interleaved(every, FEWEST_ROUNDS)
    times |= interleaved({name: call for name, call in every.items() if name not in slow}, rounds) if rounds else {}
    return [
        {"preset": preset, "mode": mode, **facts[mode],
         "times": {name.split("|")[1]: value for name, value in times.items() if name.split("|")[0] == mode}}
        for mode in [EAGER, *modes]
    ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """Medians and ratios, by processor time, which other work on the machine changes less than wall time."""
    for row in rows:
        times, samples = row["times"], row["samples"]
        told = ", ".join(f"{name} {value['median_ms']:.2f} ({value['cpu_ms']:.2f})" for name, value in times.items())
        print(f"{row['preset']}, {row['mode']}: {told}")
        cpu = {name: value["cpu_ms"] for name, value in times.items()}
        for count in dict.fromkeys((1, samples)):
            student = next(name for name in cpu if name.startswith(f"student, {count} sample"))
            print(f"  {count} samples: 50 steps {cpu['teacher, 50 steps'] / cpu[student]:.1f} x, 10 steps "
                  f"{cpu['teacher, 10 steps'] / cpu[student]:.1f} x, call / network "
                  f"{cpu[student] / cpu[f'network, {count} samples']:.2f}, p99 / median "
                  f"{times[student]['p99_ms'] / times[student]['median_ms']:.2f}")  # fmt: skip


def best(rows: list[dict[str, Any]], name: str) -> tuple[float, str]:
    """The smallest median [ms] of a call over the modes of one preset, and the mode."""
    found = [(row["times"][name]["median_ms"], row["mode"]) for row in rows if name in row["times"]]
    return min(found)


COLUMNS = ("preset", "samples", "mode", "teacher, 50 steps", "teacher, 10 steps", "student", "against 50 steps",
           "against 10 steps", "call / bare network", "p99 / median")  # fmt: skip


def tables(stored: dict[str, Any]) -> str:
    """The two tables of the page: times and ratios by preset, and rollouts in a mode."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for preset in dict.fromkeys(row["preset"] for row in stored["rows"]):
        rows = [row for row in stored["rows"] if row["preset"] == preset]
        for count in dict.fromkeys((1, rows[0]["samples"])):
            for eager in (True, False):
                lines.append(_line(preset, [row for row in rows if row["mode"] == EAGER] if eager else rows, count, eager))
    lines += ["", "| run | mode | eager | in the mode | difference, points | same mode of the task |", "|" + "---|" * 6]
    for each in stored["rollouts"]:
        middle, low, high = (100 * value for value in each["difference"])
        lines.append(f"| `{each['run']}` | {each['mode']} | {each['eager']} of {each['starts']} | {each['in_mode']} | "
                     f"{middle:+.1f} ({low:+.1f} to {high:+.1f}) | {each['same_mode']} |")  # fmt: skip
    return "\n".join(lines)


def _line(preset: str, rows: list[dict[str, Any]], count: int, eager: bool) -> str:
    """One row of the first table. rows: of the modes that teacher and student choose from."""
    name = next(each for each in rows[0]["times"] if each.startswith(f"student, {count} sample"))
    (slow, _), (ten, _), (fast, mode) = (best(rows, each) for each in ("teacher, 50 steps", "teacher, 10 steps", name))
    times = next(row["times"] for row in rows if row["mode"] == mode)
    cells = [f"`{preset}`", str(count), EAGER if eager else f"each its fastest ({mode})", f"{slow:.2f}", f"{ten:.2f}",
             f"{fast:.2f}", f"{slow / fast:.1f} ×", f"{ten / fast:.1f} ×",
             f"{fast / times[f'network, {count} samples']['median_ms']:.2f}",
             f"{times[name]['p99_ms'] / times[name]['median_ms']:.1f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def write_page(stored: dict[str, Any]) -> None:
    """The tables between the page's marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(stored)}\n{END}{after}")


def roll_out(run: Path, mode: str) -> dict[str, Any]:
    """The default student of a run named ``<preset>-seed<seed>`` from its test starts, eagerly and in a mode."""
    student = load_student(run / "distill/chamfer").eval()
    settings, task = inference_settings_of(run / "distill/chamfer", student.shape.horizon), student.shape.task
    preset, _, number = run.name.rpartition("-seed")
    _, _, config = read_command(["--config", str(ROOT / f"configs/{preset}.yaml"), "--seed", number])
    starts = stored_starts(task, config.seed, "test", config.evaluate.test_starts)
    eager = StudentPolicy(student, "chamfer")
    both = [eager, in_mode(eager, mode, settings.selection, settings.execution_horizon)]
    cameras = None if config.observation.is_plain else config.observation.camera_settings()
    seed = episode_seed(config.seed, "test", 0, 0)
    solved, modes = [], []
    for policy in both:
        episodes = run_episodes(task, policy, starts, range(len(starts)), settings.execution_horizon, seed,
                                selection=settings.selection, cameras=cameras)  # fmt: skip
        solved.append(np.array([each.success for each in episodes]))
        modes.append([each.mode for each in episodes])
    difference = paired_difference(solved[1], solved[0])
    return {"run": run.name, "mode": mode, "starts": len(starts), "eager": int(solved[0].sum()),
            "in_mode": int(solved[1].sum()), "difference": difference, "mcnemar_p": mcnemar_p(solved[1], solved[0]),
            "same_mode": sum(one == other for one, other in zip(*modes, strict=True))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=["avoid", "detour_points"], help="joined by +: overlaid")
    parser.add_argument("--modes", nargs="*", default=["onnxruntime", "openvino"], choices=list(MODES))
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--rollouts", nargs="*", type=Path, default=[], help="finished runs; nothing is timed then")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missing = {name: reason for name in arguments.modes if (reason := MODES[name].missing(torch.device("cpu")))}
    modes = [name for name in arguments.modes if name not in missing]
    print("\n".join(f"{name} left out: {reason}" for name, reason in missing.items()))
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": [], "rollouts": []}
    if arguments.rollouts:
        rolled = [roll_out(run, modes[0]) for run in arguments.rollouts]
        names = {each["run"] for each in rolled}
        stored["rollouts"] = [each for each in stored["rollouts"] if each["run"] not in names] + rolled
        print(json.dumps(rolled, indent=1))
    else:
        for preset in arguments.presets:
            rows = measure(preset, modes, arguments.calls)
            load = round(os.getloadavg()[0], 2)
            rows = [{**row, "hardware": hardware(None), "load_average": load, "torch": torch.__version__} for row in rows]
            show(rows)
            stored["rows"] = [each for each in stored["rows"] if each["preset"] != preset] + rows
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    write_page(stored)


if __name__ == "__main__":
    main()
