"""The tool frame: a policy that plans relative to where its tool is, not to where the robot's base stands.

Points, the positions of the state and those of the actions are taken relative to the tool's position in the newest
observation. A policy in this frame is equivariant to translations by construction: a scene moved as a whole gives the same
plan, moved. Only the origin moves; the axes stay those of the base.

The origin travels with the condition: a head's condition `[B, C + A]` ends with the A numbers that its normalised chunks
`[.., T, A]` are shifted by, so that chunks are in the base frame everywhere outside the network.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from envs.poses import MISSING, pose_layout
from envs.specs import ACTION, POINTS, STATE
from teachers.contract import Observation
from teachers.networks.scene_motions import position_axes
from teachers.networks.shapes import PolicyShape


class ToolFrame(nn.Module):
    """Moves observations and actions of a policy of this shape into the tool frame.

    The tool is the first position that the state names. Raises ValueError where there is none, where the policy does not
    observe it, or where the actions have no position that could be relative to it.
    """

    tool_S3: Tensor
    state_3S: Tensor
    action_3A: Tensor

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        observed = shape.state_names if shape.encoder is None else shape.encoder.state_names
        state, action = pose_layout(shape.state_names), pose_layout(shape.action_names)
        if not state.positions or not action.positions:
            which, names = ("state", shape.state_names) if not state.positions else ("action", shape.action_names)
            raise ValueError(f"frame tool: the {which} names no position, expected x_m, y_m, z_m among {list(names)}")
        lacking = [shape.state_names[index] for index in state.positions[0] if index != MISSING
                   and shape.state_names[index] not in observed]  # fmt: skip
        if lacking:
            raise ValueError(f"frame tool: the policy does not observe {lacking}, the tool's position; add it to the observed "
                             "state")  # fmt: skip
        # as matrices, because at batch 1 the number of operations counts
        self.register_buffer("tool_S3", position_axes(state.positions[:1], shape.state_size).T, persistent=False)
        self.register_buffer("state_3S", position_axes(state.positions, shape.state_size), persistent=False)
        self.register_buffer("action_3A", position_axes(action.positions, shape.action_size), persistent=False)

    def origin(self, state_BOS: Tensor) -> Tensor:
        """The tool's position `[B, 3]` [m] in the newest of O raw states; 0 along an axis that the state lacks."""
        return state_BOS[:, -1] @ self.tool_S3

    def observation(self, observation: Observation, origin_B3: Tensor) -> Observation:
        """A raw observation relative to the origin; images stay as they are."""
        found = {**observation, STATE: observation[STATE] - (origin_B3 @ self.state_3S)[:, None]}
        if POINTS in found:
            colours = found[POINTS].shape[-1] - 3
            found[POINTS] = found[POINTS] - F.pad(origin_B3, (0, colours))[:, None, None]
        return found

    def chunk(self, action_BTA: Tensor, origin_B3: Tensor) -> Tensor:
        """Raw actions relative to the origin."""
        return action_BTA - self.offset(origin_B3)[:, None]

    def batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw observations and raw actions of a batch, relative to each row's tool."""
        origin_B3 = self.origin(batch[STATE])
        observed = {name: value for name, value in batch.items() if name != ACTION}
        return {**self.observation(observed, origin_B3), ACTION: self.chunk(batch[ACTION], origin_B3)}

    def offset(self, origin_B3: Tensor) -> Tensor:
        """`[B, A]` raw: what the origin adds to each dimension of an action."""
        return origin_B3 @ self.action_3A
