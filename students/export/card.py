"""The model card of an exported student: what it is, what was measured, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from students import Student
from students.selection import Selection
from teachers.networks.observations import sources_of

MISSING = "not measured"
"""The card's text for a figure that is None."""


@dataclass(frozen=True)
class PolicyFigures:
    """Measured figures of one policy. None: not measured.

    label: its name on the card; nfe: network evaluations per plan; success_low, success_high: 95 % Wilson interval, 0 to 1;
    entropy: of the modes of successful episodes, 1 is uniform; median_ms: of the whole policy call, batch 1, over `calls`
    calls; hz: 1 / median. energy_distance, off_support_share: fidelity of its sets of chunks to the teacher's.
    """

    label: str
    nfe: int | None = None
    episodes: int | None = None
    successes: int | None = None
    success_low: float | None = None
    success_high: float | None = None
    entropy: float | None = None
    modes_reached: int | None = None
    modes_total: int | None = None
    median_ms: float | None = None
    hz: float | None = None
    calls: int | None = None
    energy_distance: float | None = None
    off_support_share: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from. "": not recorded.

    run, seed: of the run that measured them; date, hardware: as in its report.
    """

    run: str = ""
    seed: str = ""
    date: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class InferenceSettings:
    """How to run a student: how a sample is selected, and how many of its actions are executed per replan.

    source: ``run``: as it was measured; ``default``: flow2one's default, because no run says how it was measured.
    """

    selection: Selection
    execution_horizon: int
    source: str


def model_card(
    student: Student, files: Mapping[str, dict[str, Any]], inference: InferenceSettings, measured: PolicyFigures,
    teacher: PolicyFigures | None, provenance: Provenance, exported: str,
) -> str:  # fmt: skip
    """The text of ``README.md``. files: the formats in ``export.json``; teacher: its figures, if any; exported: the date."""
    shape, selection = student.shape, inference.selection
    parameters = sum(value.numel() for value in student.parameters())
    inputs = ", ".join(f"`{name}`" for name in sources_of(shape))
    latent = " x ".join(map(str, student.latent_shape))
    several = f" of {selection.candidates} plans made in the one evaluation" if selection.uses_candidates else ""
    policies, measures = [each for each in (teacher, measured) if each is not None], HEAD
    if measured.episodes is None and measured.energy_distance is not None:  # without a task to roll out in
        measures = HEAD_WITHOUT_TASK
    rows = [_row(each, measures) for each in policies]
    title = "A one-step policy" if shape.task == "recorded" else f"A one-step policy for `{shape.task}`"
    lines = [
        "---", "library_name: flow2one", "tags: [robotics, imitation-learning, one-step, flow-matching]", "---", "",
        f"# {title}", "",
        f"It makes a plan of {shape.horizon} actions ({', '.join(shape.action_names)}), {shape.dt_s:g} s apart, in one "
        "evaluation of its network. Made and measured with flow2one.", "",
        f"- Inputs: {inputs}, of the last {shape.observation_steps} steps, in raw units; normalisation is inside.",
        f"- Takes a latent for each plan, {latent} of standard normal numbers; {parameters:,} parameters.",
        f"- At run time: `{selection.kind}`{several}; {inference.execution_horizon} actions are executed per replan "
        f"({'as it was measured' if inference.source == 'run' else 'the default; no run says how it was measured'}).",
        "", "## Measured", "",
        f"| {' | '.join(measures)} |", "|---" * len(measures) + "|",
        *rows, "", *_notes(measured, teacher, provenance), "", "## Files", "",
        "- `config.json`, `model.safetensors`: for `students.load_student` of flow2one.",
        "- `export.json`: names, shapes and units of inputs and outputs, the choice among plans, sums of all files.",
        *(_file(name, entry) for name, entry in files.items()),
        "", f"Exported {exported}. The card names no licence and no data set: add those of the data it was trained on.", "",
    ]  # fmt: skip
    return "\n".join(lines)


HEAD: tuple[str, ...] = ("policy", "NFE", "success, 95 % interval", "starts", "modes", "entropy", "ms", "Hz")
HEAD_WITHOUT_TASK: tuple[str, ...] = ("policy", "NFE", "energy distance", "off-support", "ms", "Hz")
"""Columns of the table of measured figures."""


def _row(policy: PolicyFigures, measures: tuple[str, ...]) -> str:
    success = MISSING
    if policy.episodes and policy.successes is not None:
        success = f"{policy.successes / policy.episodes:.1%}"
        if policy.success_low is not None and policy.success_high is not None:
            success += f" ({policy.success_low:.1%} to {policy.success_high:.1%})"
    modes = MISSING if policy.modes_reached is None else f"{policy.modes_reached}/{policy.modes_total}"
    cells = {
        "policy": policy.label, "NFE": _number(policy.nfe, "d"), "success, 95 % interval": success,
        "starts": _number(policy.episodes, "d"), "modes": modes, "entropy": _number(policy.entropy, ".3f"),
        "energy distance": _number(policy.energy_distance, ".3g"), "off-support": _number(policy.off_support_share, ".1%"),
        "ms": _number(policy.median_ms, ".2f"), "Hz": _number(policy.hz, ".0f"),
    }  # fmt: skip
    return f"| {' | '.join(cells[name] for name in measures)} |"


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _notes(measured: PolicyFigures, teacher: PolicyFigures | None, provenance: Provenance) -> list[str]:
    seed = f", seed {provenance.seed}" if provenance.seed else ""
    source = f"run `{provenance.run}`{seed}" if provenance.run else "no run was found"
    notes = [
        f"- Source: {source}; date: {provenance.date or 'not recorded'}; hardware: {provenance.hardware or 'not recorded'}.",
    ]
    if measured.calls:
        notes.append(f"- Times: median of {measured.calls} whole calls, batch 1, in PyTorch, not of the graphs below.")
    if teacher is None:
        notes.append("- The teacher was not measured with it.")
    if measured.episodes:
        notes.append("- Success is in simulation, from stored test starts; nothing was tried on a real robot.")
    elif measured.energy_distance is not None:
        notes.append("- Success was not measured: there was no task to roll out in. Chunks like the teacher's do not prove it.")
    return notes


def _file(name: str, entry: Mapping[str, Any]) -> str:
    parity = entry["parity"]
    return (
        f"- `{entry['file']}` ({name}): differs from PyTorch by at most {parity['largest_normalised']:.1e} half ranges of an "
        f"action, on {parity['inputs']:,} random observations."
    )
