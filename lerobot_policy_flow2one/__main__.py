"""Exports a student's folder as a LeRobot policy: python -m lerobot_policy_flow2one STUDENT FOLDER [n_action_steps]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lerobot.configs.types import FeatureType, PolicyFeature

from envs.specs import IMAGES, STATE
from lerobot_policy_flow2one.configuration_flow2one import Flow2OneConfig
from lerobot_policy_flow2one.modeling_flow2one import Flow2OnePolicy
from lerobot_policy_flow2one.processor_flow2one import make_flow2one_pre_post_processors
from students import load_student
from teachers.networks.observations import feature_shape, sources_of


def export(student: Path, folder: Path, n_action_steps: int | None = None, **settings: Any) -> Path:
    """Writes the student in the folder `student` to `folder`, in LeRobot's format; returns `folder`.

    n_action_steps: None for half of the horizon; settings: further fields of `Flow2OneConfig`. Raises ValueError for a folder
    without a student, and for an existing `folder`.
    """
    loaded = load_student(student)
    if folder.exists():
        raise ValueError(f"{folder}: is there already; name a new folder")
    kinds = {name: FeatureType.STATE if name == STATE else FeatureType.VISUAL if name.startswith(IMAGES) else FeatureType.ENV
             for name in sources_of(loaded.shape)}  # fmt: skip
    config = Flow2OneConfig(
        student=(student / "config.json").read_text(), n_action_steps=n_action_steps or max(1, loaded.shape.horizon // 2),
        input_features={name: PolicyFeature(kind, feature_shape(loaded.shape, name)[1:]) for name, kind in kinds.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (loaded.shape.action_size,))}, device="cpu",
        push_to_hub=False, **settings,
    )  # fmt: skip
    policy = Flow2OnePolicy(config)
    policy.student.load_state_dict(loaded.state_dict())
    policy.save_pretrained(str(folder))
    for processor in make_flow2one_pre_post_processors(config):
        processor.save_pretrained(str(folder))
    return folder


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    print(export(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else None))
