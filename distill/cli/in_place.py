"""Whose network a conversion's student is: the policy's own, fine-tuned in place, or a fresh one, and why."""

from __future__ import annotations

from dataclasses import replace

from distill.cli.external_config import ConvertConfig
from distill.config import Config, InPlaceConfig
from distill.inputs.recorded import Opened
from distill.stages.train_in_place import IN_PLACE, loss_terms
from teachers.adapters.teacher import AdapterTeacher


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
