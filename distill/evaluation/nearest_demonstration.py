"""A baseline without a network: execute the chunk demonstrated after the most similar training observation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill.evaluation.monitor import state_distances
from distill.hypotheses.index import state_vectors
from envs.demonstrations import Demonstrations, windows
from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks.normalisation import Normaliser
from teachers.networks.shapes import PolicyShape


class DemonstrationMemory(nn.Module):
    """All training observations and the chunks that follow them, as a module whose parameters are never trained."""

    episode_N: Tensor

    def __init__(self, demonstrations: Demonstrations, shape: PolicyShape, normaliser: Normaliser) -> None:
        super().__init__()
        states, chunks = windows(
            demonstrations, np.arange(demonstrations.num_frames), shape.observation_steps, shape.horizon
        )
        self.shape, self.normaliser = shape, normaliser
        vectors, actions = state_vectors(torch.from_numpy(states), normaliser), torch.from_numpy(chunks)
        self.state_ND = nn.Parameter(vectors, requires_grad=False)
        self.chunk_NTA = nn.Parameter(normaliser.normalise_action(actions), requires_grad=False)
        self.register_buffer("episode_N", torch.from_numpy(demonstrations.episode_index))


@dataclass(frozen=True)
class NearestDemonstration:
    """A baseline without a network: execute what was demonstrated after the most similar training observation.

    neighbours: the chunk is drawn evenly from the nearest observations of that many episodes, one per episode. Several frames
    of the nearest episode would otherwise fill the places, all of the same mode.
    """

    module: DemonstrationMemory
    neighbours: int = 1
    name: str = "nearest_demonstration"

    def __post_init__(self) -> None:
        episodes = int(self.module.episode_N[-1]) + 1
        if not 1 <= self.neighbours <= episodes:
            raise ValueError(f"got {self.neighbours} neighbours, expected 1 to {episodes}: one from each episode")

    @property
    def evaluations(self) -> int:
        return 0

    @property
    def shape(self) -> PolicyShape:
        return self.module.shape

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Which of the neighbours, `[S]`."""
        return torch.randint(self.neighbours, (samples,), generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        """Raw observation to its normalised state history `[B, O*S]`."""
        return state_vectors(observation[STATE], self.module.normaliser)

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        """The demonstrated chunks `[B, S, T, A]`, normalised, of the neighbours drawn `[B, S]`."""
        distance_BN = state_distances(condition_BC, self.module.state_ND)
        if self.neighbours == 1:
            frame_Bk = distance_BN.argmin(-1, keepdim=True)
        else:
            episode_BN = self.module.episode_N.expand_as(distance_BN)
            best_BE = distance_BN.new_full((len(distance_BN), int(self.module.episode_N[-1]) + 1), torch.inf)
            best_BE = best_BE.scatter_reduce(1, episode_BN, distance_BN, "amin")
            chosen_Bk = best_BE.topk(self.neighbours, dim=-1, largest=False).indices
            other_BkN = episode_BN[:, None] != chosen_Bk[..., None]
            frame_Bk = distance_BN[:, None].masked_fill(other_BkN, torch.inf).argmin(-1)
        return self.module.chunk_NTA[frame_Bk.gather(1, draws)]
