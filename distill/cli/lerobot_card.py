"""The model card of a LeRobot policy that was fine-tuned in place: LeRobot's front matter, and what its conversion measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.cli.measured import inference_settings_of
from distill.stages.in_place.choose import OWN_FORMAT
from distill.stages.in_place.config import IN_PLACE
from distill.store.manifest import write_bytes
from envs import plain_yaml
from students.export.card import InferenceSettings

CARD = "README.md"
KEPT = ("license", "license_name", "license_link", "base_model", "datasets", "language")
"""What is taken from the card of the policy that was converted, where it has one."""


def write_card(run: Path) -> Path | None:
    """Write the card of a finished conversion beside the policy's weights; None where the policy is not LeRobot's.

    Its figures are those of the run's report, which comes after the policy's stage. So the stage's manifest does not list the
    card, and writing it again changes no stage.
    """
    student = run / "distill" / IN_PLACE
    policy = student / OWN_FORMAT
    if not (policy / "policy_preprocessor.json").is_file() or not (run / "report" / "report.json").is_file():
        return None
    report, config, told = (json.loads(path.read_text()) for path in (
        run / "report" / "report.json", policy / "config.json", student / "config.json",
    ))  # fmt: skip
    original = Path(told["adapter"]["arguments"].get("path", "")) / CARD
    text = card(report, config, told, front_matter(original), inference_settings_of(student, told["shape"]["horizon"]))
    write_bytes(policy / CARD, text.encode())
    return policy / CARD


def front_matter(file: Path) -> dict[str, Any]:
    """The metadata at the head of a card, {} where it has none or it is not YAML."""
    parts = file.read_text(errors="replace").split("---", 2) if file.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = plain_yaml.read(parts[1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def card(
    report: Mapping[str, Any], config: Mapping[str, Any], told: Mapping[str, Any], original: Mapping[str, Any],
    inference: InferenceSettings,
) -> str:  # fmt: skip
    """The card's text. config: the policy's; told: the stage's; original: `front_matter`; inference: how it was measured."""
    kind = config["type"]
    data = {
        "library_name": "lerobot", "pipeline_tag": "robotics", "model_name": kind,
        "tags": ["robotics", "lerobot", kind, "one-step", "flow2one"],
        **{key: original[key] for key in KEPT if key in original},
    }  # fmt: skip
    rows = [each for each in report["policies"] if each["kind"] == "teacher" or each["name"] == IN_PLACE]
    mine = next(each for each in rows if each["name"] == IN_PLACE)
    made, made_of = report["made"], report["data"]
    lines = [
        "---", yaml.safe_dump(data, sort_keys=False).rstrip(), "---", "", f"# {kind}, one step", "",
        f"A `{kind}` policy of LeRobot whose action head was fine-tuned so that one evaluation from Gaussian noise gives an "
        "action chunk. LeRobot's own classes run this folder.", "",
        "```bash", "lerobot-eval --policy.path=. --env.type=...", "```", "",
        f"Each query gives {told['shape']['horizon']} actions, of which LeRobot executes the first {config['n_action_steps']} "
        f"(`n_action_steps`).", "",
        "## Measured", "",
        "| policy | evaluations | success (95 % interval) | energy distance to the original | off support | call [ms] |",
        "|---|---|---|---|---|---|", *(_row(each) for each in rows), "",
        *_notes(report, config, mine, inference), "",
        "## How it was made", "",
        f"Fine-tuned with flow2one, objective `{told['objective']}`, {told['step']} steps, on "
        f"{made_of['observations']} observations with {made_of['hypotheses_per_observation']} chunks of the original policy "
        f"each. The weights outside the action head are unchanged. Seed {made['seed']}.", "",
        "License and base model: " + ("as in the original's card." if original else "the original had no card; add them."), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _row(policy: Mapping[str, Any]) -> str:
    rate = policy.get("success_rate")
    success = "not measured" if rate is None else (
        f"{100 * rate:.1f} % ({100 * policy['success_low']:.1f} to {100 * policy['success_high']:.1f}), "
        f"{policy['successes']} of {policy['episodes']}"
    )  # fmt: skip
    label = "this policy" if policy["name"] == IN_PLACE else "original, " + policy["label"].partition(", ")[2]
    fidelity, latency = policy["fidelity"], policy["latency"]
    return (f"| {label} | {policy['nfe']} | {success} | {fidelity['energy_distance']:.3f} | "
            f"{100 * fidelity['off_support_share']:.1f} % | {latency['median_ms']:.2f} |")  # fmt: skip


def _notes(
    report: Mapping[str, Any], config: Mapping[str, Any], mine: Mapping[str, Any], inference: InferenceSettings
) -> list[str]:
    """What a reader must know to read the table."""
    notes = [f"- {report['made']['hardware']}; {report['made']['date']}. Times are medians of whole calls, batch 1."]
    if not report["measured_success"]:
        return [*notes, "- Success was not measured: chunks like the original's do not prove it."]
    task, difference = report["task"], mine["difference"]
    notes.append(f"- Success: {task['summary'] or task['name']} In simulation, from the same stored starts; "
                 f"{inference.execution_horizon} actions executed per query.")  # fmt: skip
    if difference is not None:
        notes.append(f"- This policy minus the original, paired: {100 * difference:+.1f} points (95 %: "
                     f"{100 * mine['difference_low']:+.1f} to {100 * mine['difference_high']:+.1f}).")  # fmt: skip
    if mine["candidates"] > 1:
        notes.append(f"- This policy's success is with the best of {mine['candidates']} chunks per query "
                     f"({inference.selection.kind}), its time too; LeRobot draws one chunk, whose success was not measured "
                     "(`--evaluate.selection single`).")  # fmt: skip
    if inference.execution_horizon != config["n_action_steps"]:
        notes.append(f"- LeRobot executes {config['n_action_steps']} actions per query, not {inference.execution_horizon}.")
    return notes
