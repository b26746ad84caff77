"""The sets of action chunks at a few observations, for the reader to choose among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.report.policies import Results, label_of, reference_policy
from distill.report.section import Section


def explorer(results: Results) -> tuple[str, Mapping[str, Any]] | None:
    """What the page's script draws: sets by policy and observation, and the scene; None where no sets were stored."""
    explored = results.get("explored")
    if not explored or not explored["observations"]:
        return None
    reference = reference_policy(results)
    first = "" if reference is None else reference["name"]
    policies = [{"label": label_of(results, name), "reference": name == first, "sets": sets}
                for name, sets in explored["sets"].items()]  # fmt: skip
    # drawn from above where the first two actions are positions in the scene
    above = bool(results.get("scene")) and explored["actions"][:2] == ["x_m", "y_m"]
    return "explorer", {
        "actions": explored["actions"], "dt_s": explored["dt_s"], "policies": policies,
        "observations": explored["observations"], "state_names": explored["state_names"],
        "scene": results.get("scene") if above else [],
    }  # fmt: skip


def _text(results: Results) -> Sequence[str]:
    return (
        "Choose an observation and what to draw. Each line is one action chunk that the policy samples for that observation; "
        "observations are ordered from the one where the reference's chunks differ most to the one where they differ least.",
    )


EXPLORE = Section("Sets of action chunks, by observation", text=_text, interactive=explorer, level=3)
