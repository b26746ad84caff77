"""LeRobot's pre- and postprocessing of the policy: batches and devices only, because the student normalises by itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_flow2one.configuration_flow2one import Flow2OneConfig


def make_flow2one_pre_post_processors(config: Flow2OneConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Pre- and postprocessor; LeRobot finds this function by its name. dataset_stats is ignored: the student has its own."""
    to_device = DeviceProcessorStep(device=config.device)
    before = [RenameObservationsProcessorStep(rename_map={}), AddBatchDimensionProcessorStep(), to_device]
    return (
        PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline[Any, Any](
            steps=[DeviceProcessorStep(device="cpu")], name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition, to_output=transition_to_policy_action,
        ),
    )  # fmt: skip
