"""The test environment as settings, with a mapping file of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from envs.gym.settings import GymSettings

POINT = Path(__file__).parent / "point.py"
MAPPING = """\
state: {agent.xy: [x_m, y_m], goal: [goal_m]}
images: {front: picture, wrist: render}
depth: {front: depth}
points: cloud
success: info.is_success
score: max info.far
modes: {info: side, names: [left, right]}
tool: [x_m, y_m]
dt_s: 0.1
max_steps: 12
"""


@pytest.fixture
def point(tmp_path: Path) -> Callable[..., GymSettings]:
    """Settings of the test environment. mapping: in place of the usual one; make: its arguments."""

    def made(*make: str, mapping: str = MAPPING, **further: object) -> GymSettings:
        path = tmp_path / f"mapping{abs(hash(mapping))}.yaml"
        path.write_text(mapping)
        given: dict[str, object] = {"gym": str(POINT), "make": make, "mapping": str(path), "expert": f"{POINT}:expert"}
        return GymSettings(**given | further)  # type: ignore[arg-type]

    return made
