"""An adapter for a tiny pi0 or pi05: lerobot_policies.py, after LeRobot's fixed sizes were made small in its process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("flow2one_" + path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(path: str, instruction: str, kind: str) -> Any:
    """path: a folder that tiny_lerobot.py saved; kind: pi0 or pi05."""
    load(HERE.parent / "tiny_lerobot.py").shrink(kind, Path(path).parent)
    return load(HERE.parents[3] / "teachers/adapters/lerobot_policies.py").build(path, instruction)
