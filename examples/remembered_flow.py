"""An adapter in forty lines: a velocity field that remembers demonstrations, exact and without any training.

    flow2one convert --teacher examples/remembered_flow.py:build \
        --adapter.arguments demonstrations=runs/avoid-seed0/demos --observations runs/avoid-seed0/demos --out runs/remembered

For an observation the data are the chunks that were demonstrated from the most similar states, each a little blurred; the
flow from noise to such a mixture has a closed form. It imports nothing of flow2one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

BLUR = 0.02
"""Standard deviation of a remembered chunk's blur, of an action's."""


class RememberedFlow:
    """v(x, t) = (E[x1 | x, t] - x) / (1 - t), with x1 one of the chunks of the nearest demonstrated states."""

    action_size = 2
    observation_steps, num_steps = 1, 20

    def __init__(self, folder: Path, horizon: int, neighbours: int) -> None:
        self.horizon, self.neighbours = horizon, neighbours
        frames = load_file(folder / "frames.safetensors")
        self.state, action, episode = frames["state"], frames["action"], frames["episode_index"]
        self.centre, self.scale = action.mean(0), action.std(0)
        count = len(action)
        last = torch.searchsorted(episode, episode, right=True) - 1  # the last frame of each frame's episode
        future = torch.minimum(torch.arange(count)[:, None] + torch.arange(horizon), last[:, None])
        self.chunks = ((action - self.centre) / self.scale)[future]

    def encode(self, observation: dict[str, Tensor]) -> Tensor:
        """Called once per observation: which demonstrated chunks fit it, `[B, neighbours]`."""
        state = observation["observation.state"][:, -1]
        if not state.isfinite().all():  # the nearest of nothing would be something
            raise ValueError("observation.state holds NaN or infinity")
        return torch.cdist(state, self.state).topk(self.neighbours, largest=False).indices

    def expected(self, found: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """E[x1 | x] `[N, T, A]` for x = signal * x1 + noise * standard normal; signal, noise: `[N]`."""
        chunks, signal, noise = self.chunks[found], signal[:, None, None, None], noise[:, None, None, None]
        rest = x[:, None] - signal * chunks
        spread = noise.square() + (signal * BLUR).square()
        weight = (-(rest.square() / (2 * spread)).sum((2, 3))).softmax(1)
        return (weight[..., None, None] * (chunks + signal * BLUR**2 / spread * rest)).sum(1)

    def velocity(self, found: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x `[N, T, A]` at times t `[N]`, 0 is noise and 1 is data."""
        return (self.expected(found, x, t, 1 - t) - x) / (1 - t).clamp(min=1e-3)[:, None, None]

    def to_actions(self, x: Tensor) -> Tensor:
        """From the field's own units to raw actions."""
        return x * self.scale + self.centre


def build(demonstrations: str, horizon: str = "16", neighbours: str = "24") -> RememberedFlow:
    """What `convert` calls, with `--adapter.arguments`, which are text."""
    return RememberedFlow(Path(demonstrations), int(horizon), int(neighbours))
