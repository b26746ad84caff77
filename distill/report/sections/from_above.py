"""The scene from above: the paths of the test episodes, and the action chunks sampled for one observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report import figures
from distill.report.modes import mode_styles
from distill.report.policies import Policy, Results, default_student, reference_policy, regression_student
from distill.report.section import LegendEntry, Picture, Section, data_uri
from distill.report.tables import percent


def _shown(results: Results, available: Mapping[str, Any]) -> list[tuple[str, Policy]]:
    """(role, policy) of the panels, left to right, as far as there is something to draw for them."""
    roles = (
        ("Teacher", reference_policy(results)),
        ("Regression student", regression_student(results)),
        ("Default student", default_student(results)),
    )
    shown: list[tuple[str, Policy]] = []
    for role, policy in roles:
        if policy and available.get(policy["name"]) and all(policy["name"] != other["name"] for _, other in shown):
            shown.append((role, policy))
    return shown


def _panel(role: str, policy: Policy, text: str, picture: bytes) -> Picture:
    return Picture(data_uri(picture), f"{policy['label']}, seen from above", (role, policy["label"], text))


def paths(results: Results, folder: Path) -> Sequence[Picture]:
    """A top view per policy with the paths of its test episodes."""
    trajectories, scene = results.get("trajectories") or {}, results.get("scene") or []
    styles, shown = mode_styles(results["task"]["modes"]), _shown(results, trajectories)
    limits = figures.view_limits(scene, [episode["xy"] for _, policy in shown for episode in trajectories[policy["name"]]])
    pictures = []
    for role, policy in shown:
        drawn = trajectories[policy["name"]]
        text = (
            f"{percent(policy['success_rate'])} solved, {policy['modes_reached']} of {policy['modes_total']} modes; "
            f"drawn: {len(drawn)} episodes"
        )
        pictures.append(_panel(role, policy, text, figures.top_view(scene, drawn, styles, limits)))
    return pictures


def _legend(results: Results) -> Sequence[LegendEntry]:
    """One entry per mode: its line and how often the panels' policies reached it."""
    styles = mode_styles(results["task"]["modes"])
    policies = [policy for _, policy in _shown(results, results.get("trajectories") or {})]
    modes = [
        LegendEntry(
            styles[mode].colour, mode, " / ".join(str((policy.get("mode_counts") or {}).get(mode, 0)) for policy in policies),
            styles[mode].dashes,
        )
        for mode in results["task"]["modes"]
    ]
    return [*modes, LegendEntry("", "failed")]


def _paths_text(results: Results) -> Sequence[str]:
    roles = " / ".join(role.lower() for role, _ in _shown(results, results.get("trajectories") or {}))
    return (
        "The same starts, seen from above. Each line is one episode: in the colour and dashes of its mode when it succeeded "
        "(modes that begin alike share a hue), grey with a red × "
        f"where it ended when it failed. In the legend, after each mode: the successful episodes that reached it ({roles}).",
    )


def action_chunks(results: Results, folder: Path) -> Sequence[Picture]:
    """A top view per policy with the chunks it samples for one observation."""
    chunks, scene = results.get("planned_sets") or {}, results.get("scene") or []
    shown = _shown(results, chunks)
    limits = figures.view_limits(scene, [chunk for _, policy in shown for chunk in chunks[policy["name"]]])
    pictures = []
    for role, policy in shown:
        colour = figures.TEACHER if policy["kind"] == "teacher" else figures.STUDENT
        drawn = chunks[policy["name"]]
        picture = figures.chunk_set(scene, drawn, chunks.get("observation_xy"), colour, limits)
        pictures.append(_panel(role, policy, f"{len(drawn)} action chunks for this one observation", picture))
    return pictures


def _chunks_text(results: Results) -> Sequence[str]:
    return (
        "All action chunks that each policy samples for exactly the same observation, the one where the teacher's differ most "
        "(the black dot is the tool). A good student's set looks like the teacher's.",
    )


PATHS = Section(
    "Paths from above", text=_paths_text, pictures=paths, legend=_legend, missing="Paths were not recorded in this run.",
    kinds=("run",),
)  # fmt: skip
ACTION_CHUNKS = Section(
    "Action chunks for one observation", text=_chunks_text, pictures=action_chunks, kinds=("run",), level=3
)
