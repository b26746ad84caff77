"""Whose network a conversion's student is: the policy's own, fine-tuned in place, or a fresh one, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from distill.cli.external_config import ConvertConfig
from distill.config import Config
from distill.inputs.recorded import Opened, Recording
from distill.inputs.teachers import folder_key
from distill.stages.in_place.choose import read_student
from distill.stages.in_place.config import IN_PLACE, InPlaceConfig, loss_terms
from distill.stages.in_place.encode import ConditionCost
from teachers.adapters.teacher import AdapterFile, AdapterTeacher
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape


def is_in_place(folder: Path) -> bool:
    """Whether a policy that was fine-tuned in place lies there."""
    try:
        told = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("kind") == IN_PLACE


def open_in_place(path: str, timeout_s: float) -> Opened:
    """A policy that was fine-tuned in place, in its adapter's process. Raises ValueError where that cannot be opened."""
    told = read_student(Path(path))
    named, shape = told["adapter"], PolicyShape(**told["shape"])
    arguments = tuple(sorted(named["arguments"].items()))
    teacher = AdapterTeacher(AdapterFile(Path(named["file"]), named["function"], arguments, named["python"], timeout_s))
    try:
        teacher.features = sources_of(shape)
        teacher.use(Path(path) / "model.safetensors")
    except BaseException:
        teacher.close()
        raise
    return Opened(path, folder_key(Path(path)), teacher, shape, 1)


def settled_kind(config: ConvertConfig, made: Config, opened: Opened) -> tuple[InPlaceConfig | None, Config, str]:
    """How the policy's own network is trained (None: it is not), the config with the students that are, and a line about it.

    What cannot be trained in place gets the fresh student, and the line says why. Raises ValueError for a teacher of ours with
    a kind of its own, and for an objective that needs the teacher's noise where that is not known.
    """
    kind, policy = config.student.kind, opened.policy
    if not isinstance(policy, AdapterTeacher):
        if kind in (IN_PLACE, "both"):
            raise ValueError(f"student.kind: got {kind!r}, but {opened.label} is a teacher of ours, whose student starts from "
                             "its weights anyway; leave it out")  # fmt: skip
        return None, made, ""
    told = policy.description
    if told.obstacle:
        asked = "" if kind == "auto" else f", not {kind}"
        line = f"student: a fresh network{asked}, because the policy itself cannot be fine-tuned in place: {told.obstacle}"
        return None, made, "" if kind == "fresh" else f"{line} (docs/adapter.md)"
    if kind == "fresh":
        return None, made, ""
    if any(name == "paired" for _, name in loss_terms(config.in_place.objective)) and told.kind != "velocity field":
        raise ValueError(f"in_place.objective: {config.in_place.objective} pairs each chunk with the noise it was made from, "
                         f"which a {told.kind} does not tell; use --in-place.objective chamfer")  # fmt: skip
    objectives = made.student.objectives if kind == "both" else ()
    line = "student: the policy's own network, fine-tuned in place" + (", beside a fresh one" if objectives else "")
    if not told.saves:
        line += "; it has no save(folder), so only its weights are written"
    return config.in_place, replace(made, student=replace(made.student, objectives=objectives, default=IN_PLACE)), line


def condition_cost(opened: Opened, recording: Recording, made: Config) -> ConditionCost:
    """What encoding the training observations once costs, measured at one of them."""
    assert isinstance(opened.policy, AdapterTeacher)
    frames, most = recording.frames["train"], made.sample.num_observations
    seen = recording.at(frames[:1], sources_of(opened.shape))
    observation = {name: torch.from_numpy(value) for name, value in seen.items()}
    count = most if made.sample.perturbation else min(most, len(frames))
    return ConditionCost.measured(opened.policy, observation, count)
