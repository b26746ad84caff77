"""Clips of the first test episodes: embedded in the page up to a size limit, and always as files next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.policies import Results, label_of
from distill.report.section import Picture, Section, data_uri
from distill.report.tables import number

CLIP_KINDS = {".webp": "image/webp", ".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}
CLIP_BYTES = 16_000_000
"""Clips are embedded in the page up to this many bytes in total; the others are linked."""


def clips(results: Results, folder: Path) -> Sequence[Picture]:
    """Every clip, embedded or with a note on why not."""
    shown, total, root = [], 0, folder.resolve()
    for name, path in (results.get("clips") or {}).items():
        if not path:
            continue
        label, place, source, note = label_of(results, name), (folder / path).resolve(), "", ""
        kind = CLIP_KINDS.get(place.suffix.lower())
        if not place.is_relative_to(root) or kind is None:
            note = f"{label}: {path} is not a picture in this report's folder, so it is not shown."
        elif not place.is_file():
            note = f"{label}: {path} was not found."
        elif total + place.stat().st_size > CLIP_BYTES:
            note = f"{label}: {path} is too large for the page; open the file next to it."
        else:
            total += place.stat().st_size
            source = data_uri(place.read_bytes(), kind)
        shown.append(Picture(source, f"rollout of {label}", (label, *_call(results, name)), note, str(path)))
    return shown


def _call(results: Results, name: str) -> tuple[str, ...]:
    """How long the policy's own call takes, which its clip shows."""
    latency = next((policy.get("latency") for policy in results["policies"] if policy["name"] == name), None)
    return (f"{number(latency['median_ms'])} ms per policy call",) if latency else ()


def _text(results: Results) -> Sequence[str]:
    if "rlbench" in results or "gym" in results:
        seen = "What RLBench's front camera saw after each action" if "rlbench" in results else "The environment's own frames"
        return (f"{seen} of the first test episodes. The time that policies take is not shown.",)
    return (
        "The first test episodes, from the same starts, in real time: before each new chunk the robot waits for as long as a "
        "call of that policy takes (its median latency). The clock in the corner counts both. Orange: action chunks that the "
        "policy samples at a replan, shown until the next one.",
    )


def _player(results: Results) -> tuple[str, Mapping[str, Any]] | None:
    """The button that starts all clips together; None without clips."""
    return ("player", {}) if any((results.get("clips") or {}).values()) else None


CLIPS = Section(
    "Rollout clips", text=_text, pictures=clips, interactive=_player, missing="No clips were recorded in this run.",
    kinds=("run",),
)  # fmt: skip
