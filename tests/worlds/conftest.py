"""Interpreters that have other people's simulators, named by environment variables; a test without its own is skipped."""

from __future__ import annotations

import os

import pytest

INTERPRETERS = {
    "metaworld": "FLOW2ONE_METAWORLD", "pusht": "FLOW2ONE_PUSHT", "panda": "FLOW2ONE_PANDA", "robotics": "FLOW2ONE_ROBOTICS",
    "lerobot": "FLOW2ONE_LEROBOT",
}  # fmt: skip


def interpreter(name: str) -> str:
    """The interpreter with this simulator; skips the test where none is named."""
    found = os.environ.get(INTERPRETERS[name], "")
    if not found:
        pytest.skip(f"{INTERPRETERS[name]} names no interpreter that has it")
    return found
