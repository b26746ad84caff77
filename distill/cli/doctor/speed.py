"""`flow2one doctor --speed FOLDER`: times a student in every run mode of this machine and remembers the fastest beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.checks import check_writable
from distill.cli.measured import inference_settings_of
from distill.evaluation.policies import Policy, StudentPolicy
from distill.evaluation.run_modes import check_modes, measure_in_modes, policies_in_modes
from distill.store.machine import hardware, watched
from distill.store.manifest import write_json
from students import Student, load_student
from students.export.parity import random_observation
from students.runtime.modes import MODES
from students.selection import SINGLE_SAMPLE, Selection

SPEED = "speed.json"
"""The file in a student's folder that remembers its times; flow2one_runtime reads it, too."""
OBSERVATIONS = 32


@dataclass(frozen=True)
class SpeedOptions:
    """What `doctor --speed` times.

    Attributes:
        speed: a student's folder, of a run or exported
        modes: run modes to time; all that this machine has if none is named
        calls: timed calls of each
        warmup: untimed calls before them
    """

    speed: Path
    modes: tuple[str, ...] = ()
    calls: int = 200
    warmup: int = 20


def run_speed(options: SpeedOptions, say: Callable[[str], object] = print) -> int:
    """Time, print and remember; returns 0. Raises ValueError for a folder without a student and for invalid options."""
    check_modes(options.modes, "--modes")
    for name in ("calls", "warmup"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: got {getattr(options, name)}, expected at least 1")
    if not options.speed.is_dir():
        raise ValueError(f"--speed: {options.speed} is no folder; name a student's, such as runs/avoid-seed0/distill/chamfer")
    check_writable(options.speed, "--speed")
    student = load_student(options.speed).eval()
    selection, executed = _settings_of(options.speed, student)
    several = f", {selection.candidates} samples a call" if selection.uses_candidates else ""
    say(f"{student.KIND} for {student.shape.task}: {selection.kind}{several}, {executed} actions executed; one CPU thread")
    say("building graphs, which can take a minute each")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measure_modes(student, options, selection, executed)
    finally:
        torch.set_num_threads(threads)
    for line in _lines(found):
        say(line)
    write_json(options.speed / SPEED, found)
    say(f"fastest: {found['best']}; remembered in {options.speed / SPEED}")
    return 0


def measure_modes(student: Student, options: SpeedOptions, selection: Selection, executed: int) -> dict[str, Any]:
    """The content of ``speed.json``: times and parity by mode, the fastest, and what was left out."""
    policy = StudentPolicy(student, "student")
    seen = random_observation(student, OBSERVATIONS, torch.Generator().manual_seed(0))
    observations = {name: value.numpy() for name, value in seen.items()}

    def chosen(_: Policy) -> Selection:
        return selection

    in_modes, left_out = policies_in_modes([policy], options.modes or tuple(MODES), chosen, executed)
    with watched() as machine:
        measured = measure_in_modes([policy], in_modes, observations, options.calls, options.warmup, executed, 0, chosen)
    latency = measured[policy.name]
    return {"schema_version": 1, "hardware": hardware(None), "machine": machine, "torch": torch.__version__,
            "samples": selection.candidates if selection.uses_candidates else 1, "latency": latency,
            "left_out": left_out, "best": latency["best_mode"]}  # fmt: skip


def _settings_of(folder: Path, student: Student) -> tuple[Selection, int]:
    """How the student selects among its samples: as it was exported, or as its run measured it."""
    exported = folder / "export.json"
    if not exported.is_file():
        settings = inference_settings_of(folder, student.shape.horizon)
        return settings.selection, settings.execution_horizon
    try:
        entry = json.loads(exported.read_text())["selection"]
        chosen = Selection(entry["kind"], entry["candidates"], entry["forget_every"])
        return chosen if chosen.kind != "single" else SINGLE_SAMPLE, int(entry["execution_horizon"])
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{exported} is not what `flow2one export` writes; export the student again") from error


def _lines(found: dict[str, Any]) -> Sequence[str]:
    latency = found["latency"]
    modes = {name: (each, _told(each["parity"])) for name, each in latency.get("modes", {}).items()}
    rows = {"eager": (latency, "reference"), **modes}
    width = max(len(name) for name in rows)
    return [
        f"{'mode':<{width}}  {'median':>9}  {'p95':>9}  {'p99':>9}  {'Hz':>7}  difference from eager",
        *(f"{name:<{width}}  {times['median_ms']:6.2f} ms  {times['p95_ms']:6.2f} ms  {times['p99_ms']:6.2f} ms  "
          f"{times['hz']:7.0f}  {told}" for name, (times, told) in rows.items()),
        *(f"{name:<{width}}  not timed: {reason}" for name, reason in found["left_out"].items()),
    ]  # fmt: skip


def _told(alike: dict[str, Any]) -> str:
    if not alike["holds"]:
        return f"{alike['largest']:.1e} half ranges: too far, not used"
    return f"{alike['largest']:.1e} half ranges, another choice in {alike['other_choice']:.0%} of the calls"
