"""The plan of a conversion or a comparison: its stages and what each depends on, known before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from distill.cli.opening import Opened
from distill.config import Config
from distill.context import Stage
from distill.objectives.code_shares import constants
from distill.objectives.recipes import recipe
from distill.stages.plan import Plan, selection_key
from teachers.networks.shapes import PolicyShape


def outside_plan(
    config: Config, recorded: Mapping[str, Any], opened: Mapping[str, Opened], steps: Mapping[str, int],
    objectives: tuple[str, ...] = (), shape: PolicyShape | None = None,
) -> Plan:  # fmt: skip
    """Stages and keys.

    recorded: the fingerprint of the observations; opened: the policies by the names of their results, the reference first;
    steps: of each; objectives: of the students that are distilled from the reference; shape: theirs, where they start afresh.
    """
    evaluate, seed = config.evaluate, config.seed
    first = next(iter(opened.values()))
    origin: dict[str, Any] = {"recorded": recorded, "seed": seed, "observation_steps": config.teacher.observation_steps}
    observations = Stage("observations", {**origin, "policy": first.key, "shape": (shape or first.shape).described()})
    # the network's sizes are in the students' own keys
    sample = Stage("sample", {"teacher": first.key, "observations": observations.key, "sample": asdict(config.sample), **origin,
                              "execution_horizon": evaluate.execution_horizon,
                              "num_steps": config.sample.num_steps or first.num_steps})  # fmt: skip
    held_out = {**origin, "observations": evaluate.fidelity_observations, "samples": evaluate.fidelity_samples,
                "execution_horizon": evaluate.execution_horizon}  # fmt: skip
    reference = Stage("reference", {**held_out, "policy": first.key, "num_steps": next(iter(steps.values()))})
    selection = selection_key(evaluate.student_selection)
    task: dict[str, Any] = {"task": config.task, "test": evaluate.test_starts} if config.task else {}
    choice: dict[str, Any] = {"task": config.task, "validation": evaluate.validation_starts} if config.task else {}

    train, chosen = {}, {}
    for name in objectives:
        settings = {key: value for key, value in asdict(recipe(name).settings(config)).items()
                    if key not in ("objectives", "default")}  # fmt: skip
        train[name] = Stage(f"train/{name}", {
            "objective": name, "student": settings, "seed": seed, "sample": sample.key,
            "execution_horizon": evaluate.execution_horizon, "shape": shape.described() if shape else None,
        })  # fmt: skip
        shares = {"calibration": constants()} if recipe(name).learns_shares(config.student) else {}
        chosen[name] = Stage(f"distill/{name}", {**choice, **held_out, **selection, **shares, "candidates": train[name].key})

    def evaluated(name: str, policy: dict[str, Any]) -> Stage:
        return Stage(f"evaluate/{name}", {**policy, **task, **selection, "reference": reference.key})

    existing = {name: evaluated(name, {"policy": each.key, "num_steps": steps[name]}) for name, each in opened.items()}
    students = {name: evaluated(name, {"student": stage.key}) for name, stage in chosen.items()}
    latency = Stage("latency", {"policies": [stage.key for group in (existing, students) for stage in group.values()],
                                "calls": evaluate.latency_calls, "warmup": evaluate.latency_warmup})  # fmt: skip
    report = Stage("report", {"latency": latency.key, "run": config.folder.name,
                              "labels": {name: each.label for name, each in opened.items()}})  # fmt: skip
    return Plan(
        observations, observations, None, None, sample, train, chosen, reference, {}, existing, students, latency, {}, report
    )


def stages_of(plan: Plan, native: bool) -> list[Stage]:
    """The stages in the order they are done; native: whether the reference is a policy of ours, with its own statistics."""
    made = [] if native else [plan.demos]
    distilled = [stage for name in plan.students for stage in (plan.train_students[name], plan.students[name])]
    return [*made, *([plan.sample] if distilled else []), *distilled, plan.reference, *plan.students_evaluated.values(),
            *plan.baselines_evaluated.values(), plan.latency, plan.report]  # fmt: skip
