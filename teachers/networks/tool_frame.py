"""The tool frame: a policy that plans relative to where its tool is, not to where the robot's base stands.

Points, the positions of the state and those of the actions are taken relative to the tool's position in the newest
observation. A policy in this frame is equivariant to translations by construction: a scene moved as a whole gives the same
plan, moved. Only the origin moves; the axes stay those of the base.

The origin travels with the condition: a head's condition `[B, C + A]` ends with the A numbers that its normalised chunks
`[.., T, A]` are shifted by, so that chunks are in the base frame everywhere outside the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.poses import MISSING, PoseLayout, pose_layout
from envs.specs import ACTION, POINTS, STATE
from teachers.contract import Observation
from teachers.networks.scene_motions import tool_of
from teachers.networks.shapes import PolicyShape


class ToolFrame:
    """Moves observations and actions of a policy of this shape into the tool frame.

    The tool is the first position that the state names. Raises ValueError where there is none, where the policy does not
    observe it, or where the actions have no position that could be relative to it.
    """

    def __init__(self, shape: PolicyShape) -> None:
        observed = shape.state_names if shape.encoder is None else shape.encoder.state_names
        self.state, self.action = pose_layout(shape.state_names), pose_layout(shape.action_names)
        if not self.state.positions or not self.action.positions:
            which, names = ("state", shape.state_names) if not self.state.positions else ("action", shape.action_names)
            raise ValueError(f"frame tool: the {which} names no position, expected x_m, y_m, z_m among {list(names)}")
        lacking = [shape.state_names[index] for index in self.state.positions[0] if index != MISSING
                   and shape.state_names[index] not in observed]  # fmt: skip
        if lacking:
            raise ValueError(f"frame tool: the policy does not observe {lacking}, the tool's position; add it to the observed "
                             "state")  # fmt: skip
        self.action_size = shape.action_size

    def origin(self, state_BOS: Tensor) -> Tensor:
        """The tool's position `[B, 3]` [m] in the newest of O raw states; 0 along an axis that the state lacks."""
        return tool_of(state_BOS, self.state)

    def observation(self, observation: Observation, origin_B3: Tensor) -> Observation:
        """A raw observation relative to the origin; images stay as they are."""
        found = {**observation, STATE: _shifted(observation[STATE], self.state, -origin_B3)}
        if POINTS in found:
            points = found[POINTS]
            found[POINTS] = torch.cat([points[..., :3] - origin_B3[:, None, None], points[..., 3:]], dim=-1)
        return found

    def chunk(self, action_BTA: Tensor, origin_B3: Tensor) -> Tensor:
        """Raw actions relative to the origin."""
        return _shifted(action_BTA, self.action, -origin_B3)

    def batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw observations and raw actions of a batch, relative to each row's tool."""
        origin_B3 = self.origin(batch[STATE])
        observed = {name: value for name, value in batch.items() if name != ACTION}
        return {**self.observation(observed, origin_B3), ACTION: self.chunk(batch[ACTION], origin_B3)}

    def offset(self, origin_B3: Tensor) -> Tensor:
        """`[B, A]` raw: what the origin adds to each dimension of an action."""
        return _shifted(origin_B3.new_zeros(len(origin_B3), 1, self.action_size), self.action, origin_B3)[:, 0]


def _shifted(values: Tensor, layout: PoseLayout, shift_B3: Tensor) -> Tensor:
    """`[B, L, D]` with every position shifted by its row's `[B, 3]`."""
    columns = list(values.unbind(-1))
    for triple in layout.positions:
        for axis, index in enumerate(triple):
            if index != MISSING:
                columns[index] = columns[index] + shift_B3[:, axis, None]
    return torch.stack(columns, dim=-1)
