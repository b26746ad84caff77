"""The out-of-distribution monitor: is an observation farther from the training observations than they are from each other?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from distill.hypotheses.index import state_vectors
from distill.hypotheses.neighbours import PAIRS_AT_ONCE
from teachers.networks.normalisation import Normaliser

CALIBRATION = 4096
"""At most this many training observations set a monitor's threshold; each is compared with all others."""


class SupportMonitor(nn.Module):
    """Flags observations that are farther from the training observations than those are from each other.

    Distance: root mean square difference of normalised state histories, to the nearest training observation.
    threshold: the quantile of the training observations' distances to the nearest one of another group.
    """

    state_ND: Tensor

    def __init__(
        self, state_NOS: Tensor, group_N: Tensor, normaliser: Normaliser, quantile: float = 0.99
    ) -> None:
        """state_NOS: raw state histories. group_N: groups for leave-one-group-out, at least two.

        Use the start of each frame's episode as its group, not the episode: demonstrations of one start begin in the same
        state, and a threshold from those would flag every new start. At most `CALIBRATION` observations are compared.
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
            distance_nN = state_distances(self.state_ND[row_n], self.state_ND)
            distance_nN[group_N[row_n, None] == group_N] = torch.inf
            distance.append(distance_nN.amin(-1))
        self.threshold = float(torch.cat(distance).quantile(quantile))

    @torch.no_grad()
    def distance(self, state_BOS: Tensor) -> Tensor:
        """`[B]` distances of raw state histories; NaN for a state that is not finite."""
        distance_BN = state_distances(state_vectors(state_BOS.to(self.state_ND), self.normaliser), self.state_ND)
        return distance_BN.amin(-1)

    def is_out_of_distribution(self, state_OS: Tensor) -> bool:
        """Whether one raw state history is beyond the threshold; a state that is not finite is."""
        return self.are_out_of_distribution(state_OS[None].cpu().numpy())[0]

    def are_out_of_distribution(self, states_BOS: np.ndarray) -> list[bool]:
        """The same for a batch on the host."""
        distance_B = self.distance(torch.from_numpy(np.ascontiguousarray(states_BOS)))
        return [not value <= self.threshold for value in distance_B.tolist()]


def state_distances(first_MD: Tensor, second_ND: Tensor) -> Tensor:
    """All distances `[M, N]`, by differences: neighbouring states are too close for the rounding of a matrix product."""
    return torch.cdist(first_MD, second_ND, compute_mode="donot_use_mm_for_euclid_dist")
