"""How long a stage took in an earlier run with the same settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.runtime.stage import Stage
from distill.store.manifest import read_manifest

MOST_RUNS = 40
"""Earlier runs that are looked at, the newest first."""


def earlier_seconds(run: Path, stage: Stage[Any]) -> float | None:
    """Wall seconds of the newest finished stage of this name and these settings, in `run` or a run beside it; None without any.

    Seeds and the content of the inputs may differ.
    """
    wanted = _without_identity(json.loads(json.dumps(stage.made_from, default=str)))
    found: list[tuple[float, float]] = []
    for place in _places(run, stage.name):
        try:
            manifest = read_manifest(place)
        except ValueError:
            continue
        if manifest and manifest.get("seconds") and _without_identity(manifest.get("made_from")) == wanted:
            found.append((place.stat().st_mtime, float(manifest["seconds"])))
    return max(found)[1] if found else None


def _places(run: Path, name: str) -> Iterator[Path]:
    """Where a finished stage of this name may be: in a run's folder, or archived there."""
    beside = [path for path in run.parent.iterdir() if (path / ".lock").is_file()] if run.parent.is_dir() else []
    beside.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in beside[:MOST_RUNS]:
        yield folder / name
        yield from (path for path in (folder / name).parent.glob(f"{Path(name).name}.*") if path.suffix != ".partial")


def _without_identity(value: Any) -> Any:
    """The value without seeds, names and keys (sha256), which change what is computed but not how long it takes."""
    if isinstance(value, dict):
        return {name: _without_identity(each) for name, each in value.items() if name not in ("seed", "run")}
    if isinstance(value, list):
        return [_without_identity(each) for each in value]
    return "" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value
