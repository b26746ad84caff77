"""What was demonstrated, at run time: is an observation like it, and the baseline that does what was done there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill.hypotheses.index import state_vectors
from distill.hypotheses.neighbours import PAIRS_AT_ONCE
from envs.demonstrations import Demonstrations, windows
from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks.normalisation import Normaliser
from teachers.networks.shapes import PolicyShape

CALIBRATION = 4096
"""Most training observations whose own distances set a monitor's threshold: each is compared with all others."""


class SupportMonitor(nn.Module):
    """Says whether an observation is farther from the training observations than they are from each other.

    Distance: root mean square difference of normalised state histories, to the nearest training observation.
    threshold: the quantile of the training observations' distances to the nearest one of another group.
    """

    state_ND: Tensor

    def __init__(
        self, state_NOS: Tensor, group_N: Tensor, normaliser: Normaliser, quantile: float = 0.99
    ) -> None:
        """state_NOS: raw; group_N: what is left out together, at least two.

        Take the start of each frame's episode, not the episode: demonstrations of one start begin in one state, and a
        threshold from those would call every new start foreign. At most `CALIBRATION` observations are compared.
        Raises ValueError for fewer than two groups, shapes that do not match, or a quantile outside 0 .. 1.
        """
        super().__init__()
        if state_NOS.ndim != 3 or group_N.shape != state_NOS.shape[:1] or len(group_N.unique()) < 2:
            raise ValueError(
                f"got states {tuple(state_NOS.shape)} in {len(group_N.unique())} groups {tuple(group_N.shape)}, "
                "expected [N, O, S] and [N] with two groups or more: leave-one-out needs another to compare with"
            )
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must be in 0 .. 1, got {quantile}")
        self.normaliser = normaliser
        self.register_buffer("state_ND", state_vectors(state_NOS, normaliser))
        chosen = torch.linspace(0, len(state_NOS) - 1, min(CALIBRATION, len(state_NOS))).round().long()
        distance = []
        for row_n in chosen.split(max(1, PAIRS_AT_ONCE // len(state_NOS))):
            distance_nN = _differences(self.state_ND[row_n], self.state_ND)
            distance_nN[group_N[row_n, None] == group_N] = torch.inf
            distance.append(distance_nN.amin(-1))
        self.threshold = float(torch.cat(distance).quantile(quantile))

    @torch.no_grad()
    def distance(self, state_BOS: Tensor) -> Tensor:
        """`[B]` distances of raw state histories; NaN for a state that is not finite."""
        distance_BN = _differences(state_vectors(state_BOS.to(self.state_ND), self.normaliser), self.state_ND)
        return distance_BN.amin(-1)

    def is_outside(self, state_OS: Tensor) -> bool:
        """Whether one raw state history lies beyond the threshold; a state that is not finite does."""
        return self.are_outside(state_OS[None].cpu().numpy())[0]

    def are_outside(self, states_BOS: np.ndarray) -> list[bool]:
        """The same for several, on the host."""
        distance_B = self.distance(torch.from_numpy(np.ascontiguousarray(states_BOS)))
        return [not value <= self.threshold for value in distance_B.tolist()]


class DemonstrationMemory(nn.Module):
    """All training observations and the chunks that follow them, as a module: they are its parameters, never trained."""

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
    """The baseline without a network: do what was done after the most similar training observation.

    neighbours: the chunk is one of those of the nearest observations of that many episodes, drawn evenly. One per
    episode: the frames beside the nearest one would else fill the places, and all of them go the same way.
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
        distance_BN = _differences(condition_BC, self.module.state_ND)
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


def _differences(first_MD: Tensor, second_ND: Tensor) -> Tensor:
    """All distances `[M, N]` by differences: neighbouring states are too close for a product's rounding."""
    return torch.cdist(first_MD, second_ND, compute_mode="donot_use_mm_for_euclid_dist")
