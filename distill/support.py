"""The teacher's support over the whole cache: pooled neighbours, duplicates, modes, and what lies outside of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.cache import HypothesisDataset
from distill.neighbours import faiss_available, faiss_sees_gpu, gpu_resources, nearest_k, say_faiss_is_missing
from distill.objectives import embed
from envs.demonstrations import Demonstrations, windows
from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks import PolicyShape
from teachers.normalisation import Normaliser

IVF_FROM = 200_000
"""From this many vectors on, an index is approximate where FAISS is installed (benchmarks/neighbours.py has the figures)."""

PROBES = 32
"""Lists of an approximate index that a query looks through; more finds more of the true neighbours and takes longer."""

SAMPLES_PER_LIST = 40

MODE_RATIO = 2.0
"""Least ratio of the empty space between two modes to the widest step within them."""

CALIBRATION = 4096
"""Most training observations whose own distances set a monitor's threshold: each is compared with all others."""

_NUMBERS_AT_ONCE = 2**24


# -- vectors -----------------------------------------------------------------------------------------------------------


def state_vectors(state_BOS: Tensor, normaliser: Normaliser) -> Tensor:
    """Raw state histories as `[B, O*S]`, whose Euclidean distance is the root mean square normalised difference."""
    return normaliser.normalise_state(state_BOS).flatten(1) / math.sqrt(state_BOS.shape[1:].numel())


def pooled_vectors(
    chunks_BKTA: Tensor, weights_A: Tensor, observation_BE: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Chunks of many observations in one space, `[B*K, D]`: the chunk alone, or the observation beside it.

    observation_BE: one vector per observation, for instance `state_vectors`; with it D = E + T*A, and
    d^2 = scale^2 d(observations)^2 + d(chunks)^2. A large scale compares like observations only; 0, or no observation,
    asks whether a chunk is like any that the teacher drew anywhere. What is found in a pool never replaces the figures
    per observation (distill/fidelity.py): a pool can not see a chunk of the wrong observation, or a mode lost in one.
    """
    chunk_BKD = embed(chunks_BKTA, weights_A)
    if observation_BE is not None:
        chunk_BKD = torch.cat([scale * observation_BE[:, None].expand(-1, chunk_BKD.shape[1], -1), chunk_BKD], dim=-1)
    return chunk_BKD.flatten(0, 1)


def cache_blocks(dataset: HypothesisDataset, rows: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw states `[n, O, S]` and normalised chunks `[n, K, T, A]` of a cache, a shard's worth of rows at a time."""
    chosen = range(len(dataset)) if rows is None else rows
    for start in range(0, len(chosen), dataset.shard_size):
        items = [dataset[row] for row in chosen[start : start + dataset.shard_size]]
        yield torch.stack([item[STATE] for item in items]), torch.stack([item["hypotheses"] for item in items])


# -- an index ----------------------------------------------------------------------------------------------------------


class HypothesisIndex:
    """Nearest neighbours among vectors that are added block by block; vector i is the i-th that was added.

    Exact below `IVF_FROM` expected vectors or without FAISS, approximate (FAISS IVF, full float32 vectors, Euclidean)
    from there on: `exact` says which. It holds 4 D bytes a vector: a million chunks of 48 x 2 are 0.4 GB.
    """

    def __init__(self, sample_ND: Tensor, capacity: int, approximate: bool | None = None) -> None:
        """sample_ND: vectors like those to come, from all over; an approximate index takes its lists from them.

        capacity: how many vectors will be added at most. approximate: None chooses by capacity.
        Raises ValueError for a sample that is not `[N, D]`, finite and not empty, or FAISS that is needed but missing.
        """
        if sample_ND.ndim != 2 or not sample_ND.numel() or not bool(torch.isfinite(sample_ND).all()):
            raise ValueError(f"got a sample {tuple(sample_ND.shape)}, expected finite vectors [N, D], at least one")
        if approximate and not faiss_available():
            raise ValueError("an approximate index needs FAISS; pip install faiss-cpu, or take approximate=None")
        if approximate is None and capacity >= IVF_FROM and not faiss_available():
            say_faiss_is_missing()
        self.exact = not (capacity >= IVF_FROM and faiss_available() if approximate is None else approximate)
        self.capacity, self.count = capacity, 0
        self._centre_D = sample_ND.float().mean(0)  # a search by products loses digits far from the origin
        if self.exact:
            self._vectors_ND = torch.empty(capacity, sample_ND.shape[1], device=sample_ND.device)
        else:
            self._index = self._trained(sample_ND.float() - self._centre_D)

    def _trained(self, sample_ND: Tensor) -> Any:
        import faiss  # imported only when used, as in distill/neighbours.py

        # FAISS wants 39 sample vectors a list, and warns below that
        self.lists = max(1, min(_lists(self.capacity), len(sample_ND) // SAMPLES_PER_LIST))
        quantizer = faiss.IndexFlatL2(sample_ND.shape[1])
        index = faiss.IndexIVFFlat(quantizer, sample_ND.shape[1], self.lists)
        index.quantizer, index.nprobe, index.cp.niter = quantizer, min(PROBES, self.lists), 10
        index.train(np.ascontiguousarray(sample_ND[: SAMPLES_PER_LIST * self.lists].cpu().numpy()))
        if sample_ND.is_cuda and faiss_sees_gpu():  # never measured for this project
            return faiss.index_cpu_to_gpu(gpu_resources(), sample_ND.device.index or 0, index)
        return index

    def add(self, block_ND: Tensor) -> None:
        """Append vectors. Raises ValueError for another size, values that are not finite, or more than the capacity."""
        if block_ND.ndim != 2 or block_ND.shape[1] != len(self._centre_D) or not bool(torch.isfinite(block_ND).all()):
            raise ValueError(f"got {tuple(block_ND.shape)}, expected finite vectors [N, {len(self._centre_D)}]")
        if self.count + len(block_ND) > self.capacity:
            raise ValueError(f"got {self.count + len(block_ND)} vectors, expected at most {self.capacity}: the capacity")
        centred_ND = block_ND.to(self._centre_D) - self._centre_D
        if self.exact:
            self._vectors_ND[self.count : self.count + len(block_ND)] = centred_ND
        elif len(block_ND):
            self._index.add(np.ascontiguousarray(centred_ND.cpu().numpy()))
        self.count += len(block_ND)

    def search(self, query_MD: Tensor, count: int, own_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Euclidean distances to and indices of the `count` nearest vectors, `[M, count]`, nearest first.

        own_M: the queries' own places in the index, which are not to be found. Among vectors equally far up to
        rounding any may come first. Ask for many at once: the exact kind reads every vector at each call.
        Raises ValueError when the index has fewer vectors, or a query is not finite.
        """
        wanted = count + (own_M is not None)
        if not 1 <= count <= wanted <= self.count:
            raise ValueError(f"asked for {wanted} neighbours (its own included), expected 1 to {self.count}: those added")
        if query_MD.ndim != 2 or not bool(torch.isfinite(query_MD).all()):
            raise ValueError(f"got queries {tuple(query_MD.shape)}, expected finite vectors [M, {len(self._centre_D)}]")
        centred_MD = query_MD.to(self._centre_D) - self._centre_D
        if self.exact:
            found, places = nearest_k(centred_MD[None], self._vectors_ND[None, : self.count], wanted, strict=False)
            distance_Mk, index_Mk = found[0], places[0]
        else:
            distance_Mk, index_Mk = (part.to(query_MD.device) for part in self._probe(centred_MD, wanted))
        if own_M is None:
            return distance_Mk, index_Mk
        is_own_Mk = index_Mk == own_M.to(index_Mk)[:, None]
        is_own_Mk[:, -1] |= ~is_own_Mk.any(-1)  # it was not found among its copies: the last goes in its place
        return distance_Mk[~is_own_Mk].view(-1, count), index_Mk[~is_own_Mk].view(-1, count)

    def _probe(self, query_MD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        import faiss

        query = np.ascontiguousarray(query_MD.cpu().numpy())
        squared, index = self._index.search(query, count)
        short = (index < 0).any(1)  # the lists looked through hold fewer than asked for: look through all
        if short.any():
            everywhere = faiss.SearchParametersIVF()
            everywhere.nprobe = self.lists
            squared[short], index[short] = self._index.search(query[short], count, params=everywhere)
        return torch.from_numpy(squared).clamp(min=0).sqrt(), torch.from_numpy(index)

    @classmethod
    def of_cache(
        cls, dataset: HypothesisDataset, vectors: Callable[[Tensor, Tensor], Tensor], approximate: bool | None = None
    ) -> HypothesisIndex:
        """All hypotheses of a cache, read shard by shard: hypothesis k of row n is vector n * K + k.

        vectors: raw states `[n, O, S]` and normalised chunks `[n, K, T, A]` to `[n*K, D]`, see `pooled_vectors`.
        """
        per_row = int(dataset.index["num_hypotheses"])
        capacity = len(dataset) * per_row
        # rows spread evenly: the cache is in the order of the episodes, its beginning is not like the rest
        enough = -(-SAMPLES_PER_LIST * _lists(capacity) // per_row)
        spread = np.unique(np.linspace(0, len(dataset) - 1, min(enough, len(dataset))).round().astype(int)).tolist()
        sample = torch.cat([vectors(*block) for block in cache_blocks(dataset, spread)])
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
        index = cls(sample[order], capacity, approximate)
        for block in cache_blocks(dataset):
            index.add(vectors(*block))
        return index


def _lists(capacity: int) -> int:
    """Lists of an approximate index: about as many as vectors in one, so that neither choosing nor looking is long."""
    return max(1, int(2 * math.sqrt(capacity)))


# -- two pooled sets ---------------------------------------------------------------------------------------------------


def pooled_fidelity(policy_ND: Tensor, teacher_LD: Tensor, neighbours: int = 5) -> dict[str, float]:
    """precision, recall, density, coverage of a policy's pooled vectors against the teacher's; exact.

    Balls reach to the `neighbours`-th nearest other vector of the same set. precision, recall: share of vectors in any
    ball of the other set (Kynkaanniemi et al. 2019, eq. 1-2); density: mean number of the teacher's balls a policy
    vector is in, over `neighbours`, may pass 1; coverage: share of the teacher's balls with a policy vector in
    (Naeem et al. 2020, section 3). They complement the figures per observation, see `pooled_vectors`.
    Raises ValueError when a set has fewer than `neighbours` + 1 vectors.
    """
    smallest = min(len(policy_ND), len(teacher_LD))
    if smallest <= neighbours:
        raise ValueError(f"got {smallest} vectors, expected at least {neighbours + 1} for {neighbours} neighbours")
    # float64: a vector on the edge of a ball, as on grids, must not fall out by the rounding of a product
    centre_D = teacher_LD.double().mean(0)
    policy_ND, teacher_LD = policy_ND.double() - centre_D, teacher_LD.double() - centre_D
    radius_N, radius_L = _radii(policy_ND, neighbours), _radii(teacher_LD, neighbours)
    slack = 1e-12 * (policy_ND.square().sum(-1).max() + teacher_LD.square().sum(-1).max())
    precise = balls = 0.0
    recalled_L = torch.zeros(len(teacher_LD), dtype=torch.bool, device=teacher_LD.device)
    covered_L = recalled_L.clone()
    rows = max(1, _NUMBERS_AT_ONCE // len(teacher_LD))
    for part_nD, reach_n in zip(policy_ND.split(rows), radius_N.split(rows), strict=True):
        squared_nL = part_nD.square().sum(-1)[:, None] + teacher_LD.square().sum(-1) - 2 * part_nD @ teacher_LD.T
        inside_nL = squared_nL <= radius_L.square() + slack
        precise += float(inside_nL.any(1).sum())
        balls += float(inside_nL.sum())
        covered_L |= inside_nL.any(0)
        recalled_L |= (squared_nL <= reach_n.square()[:, None] + slack).any(0)
    return {
        "precision": precise / len(policy_ND), "recall": float(recalled_L.double().mean()),
        "density": balls / (neighbours * len(policy_ND)), "coverage": float(covered_L.double().mean()),
    }  # fmt: skip


def _radii(points_ND: Tensor, neighbours: int) -> Tensor:
    """Distance `[N]` to the `neighbours`-th nearest other point: of N points at least one at distance 0 is itself."""
    return nearest_k(points_ND[None], points_ND[None], neighbours + 1, strict=False)[0][0, :, -1]


# -- duplicates and novelty --------------------------------------------------------------------------------------------


def distinct(chunks_BKD: Tensor, radius: float) -> Tensor:
    """Keep mask `[B, K]`: a vector goes when an earlier one of the same observation that stays is within `radius`."""
    close_BKK = torch.cdist(chunks_BKD, chunks_BKD, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    keep_BK = torch.ones(chunks_BKD.shape[:2], dtype=torch.bool, device=chunks_BKD.device)
    for k in range(1, chunks_BKD.shape[1]):
        keep_BK[:, k] = ~(close_BKK[:, k, :k] & keep_BK[:, :k]).any(-1)
    return keep_BK


def distinct_in_pool(blocks: Iterable[Tensor], index: HypothesisIndex, radius: float) -> Tensor:
    """Keep mask `[N]` over all blocks `[n, D]`: a vector goes when an earlier one that stays is within `radius`.

    Those that stay are added to `index`, which is empty at first. Where it is approximate, a neighbour it misses makes
    a copy stay, never an original go.
    """
    kept = []
    for block_nD in blocks:
        for part_nD in block_nD.split(1024):
            far_n = torch.ones(len(part_nD), dtype=torch.bool, device=part_nD.device)
            if index.count:
                far_n = index.search(part_nD, 1)[0][:, 0] > radius
            far_n[far_n.clone()] = distinct(part_nD[far_n][None], radius)[0]
            index.add(part_nD[far_n])
            kept.append(far_n)
    return torch.cat(kept)


def novelty(index: HypothesisIndex, vectors_ND: Tensor, first: int, neighbours: int = 5) -> Tensor:
    """Distance `[N]` of vectors first, first + 1, .. of an index to their `neighbours`-th other vector in it."""
    own_N = torch.arange(first, first + len(vectors_ND), device=vectors_ND.device)
    return index.search(vectors_ND, neighbours, own_N)[0][:, -1]


# -- modes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modes:
    """How one observation's hypotheses fall apart. label_K: each one's mode; shares: of the modes, largest first."""

    label_K: Tensor
    shares: Tensor

    @property
    def count(self) -> int:
        return len(self.shares)


def modes_per_observation(
    chunks_BKTA: Tensor, weights_A: Tensor, ratio: float = MODE_RATIO, smallest: int | None = None
) -> list[Modes]:
    """The modes of each observation's K chunks, by single linkage cut where its steps grow most.

    Single linkage joins the nearest groups first; h_i is the distance of the i-th join. The cut is where h_(i+1) / h_i
    is greatest of all that leave at least two groups of `smallest` chunks or more (at least 4, and 5 % of K), and there
    is one mode unless that ratio reaches `ratio`. Chunks of smaller groups go to the mode of their nearest chunk.
    So a mode that the teacher takes seldom needs a large K to be seen: 4 of 16 are 25 %, 4 of 64 are 6 %. A chain of
    strays between two modes joins them. Drawn 1000 times, Gaussian sets of 16 / 32 / 64 look many-moded in 8 / 4 / 2 %
    in one dimension and in 0.2 % or less in two and three; two equal Gaussians are told apart in 97 % or more when 10
    standard deviations apart, 55 to 98 % at 8, seldom below 6. It errs towards one mode.
    """
    if chunks_BKTA.ndim != 4 or not bool(torch.isfinite(chunks_BKTA).all()):
        raise ValueError(f"got {tuple(chunks_BKTA.shape)}, expected finite chunks [B, K, T, A]")
    smallest = max(4, math.ceil(0.05 * chunks_BKTA.shape[1])) if smallest is None else smallest
    return [_modes(points_KD, ratio, smallest) for points_KD in embed(chunks_BKTA, weights_A).double().cpu().numpy()]


def _modes(points_KD: np.ndarray, ratio: float, smallest: int) -> Modes:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    label_K = np.zeros(len(points_KD), dtype=np.int64)
    if len(points_KD) >= 2 * smallest:
        distance = pdist(points_KD)
        tree = linkage(distance, "single")
        height = tree[:, 2]
        tiny = max(1e-9, 1e-6 * height[-1])  # copies join at zero: no ratio can be taken from that
        growth = height[1:] / np.maximum(height[:-1], tiny)
        for cut in np.argsort(-growth, kind="stable"):
            if growth[cut] < ratio:
                break
            group_K = fcluster(tree, height[cut], "distance")
            large = np.flatnonzero(np.bincount(group_K) >= smallest)
            if len(large) >= 2:
                label_K = _joined(points_KD, group_K, large)
                break
    shares = np.bincount(label_K) / len(label_K)
    order = np.argsort(-shares, kind="stable")
    return Modes(torch.from_numpy(np.argsort(order)[label_K]), torch.from_numpy(shares[order]).float())


def _joined(points_KD: np.ndarray, group_K: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Labels 0, 1, .. of the large groups; every other point gets that of the nearest point in one of them."""
    from scipy.spatial.distance import cdist

    inside = np.flatnonzero(np.isin(group_K, large))
    winner_K = inside[cdist(points_KD, points_KD[inside]).argmin(1)]
    label_K: np.ndarray = np.searchsorted(large, group_K[winner_K])
    return label_K


def mode_share_error(policy_MTA: Tensor, teacher_KTA: Tensor, modes: Modes, weights_A: Tensor) -> float:
    """Total variation, 0 to 1, between the shares of a teacher's modes and those a policy's chunks fall into.

    A chunk falls into the mode of its nearest teacher chunk, wherever it lies: read it beside `outside_share`, a mean
    of two modes is counted as one of them. Its floor is the same figure of a second teacher set of M chunks.
    """
    policy_1MD, teacher_1KD = embed(policy_MTA[None], weights_A), embed(teacher_KTA[None], weights_A)
    label_M = modes.label_K.to(teacher_1KD.device)[nearest_k(policy_1MD, teacher_1KD, 1)[1][0, :, 0]]
    shares = torch.bincount(label_M, minlength=modes.count).cpu() / len(policy_MTA)
    return float(0.5 * (shares - modes.shares).abs().sum())


def mode_figures(policy_MTA: Tensor, teacher_KTA: Tensor, second_MTA: Tensor, weights_A: Tensor) -> dict[str, Any]:
    """One observation, for JSON: how many modes, their shares, the policy's share error, and a second teacher set's.

    Raises ValueError when the policy's set and the second one differ in size: a smaller set errs more by chance alone.
    """
    if len(policy_MTA) != len(second_MTA):
        raise ValueError(f"got {len(policy_MTA)} chunks and {len(second_MTA)} for the floor, expected equally many")
    (modes,) = modes_per_observation(teacher_KTA[None], weights_A)
    return {
        "modes": modes.count, "shares": [round(float(share), 4) for share in modes.shares],
        "share_error": mode_share_error(policy_MTA, teacher_KTA, modes, weights_A),
        "share_error_floor": mode_share_error(second_MTA, teacher_KTA, modes, weights_A),
    }  # fmt: skip


def summarise_modes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many observations have 1, 2, .. modes, and the share errors over those with several; None where none has."""
    many = [row for row in rows if row["modes"] > 1]
    return {
        "observations": len(rows),
        "observations_by_modes": np.bincount([row["modes"] for row in rows])[1:].tolist() if rows else [],
        **{name: float(np.mean([row[name] for row in many])) if many else None
           for name in ("share_error", "share_error_floor") if not rows or name in rows[0]},
    }  # fmt: skip


def modes_of_cache(dataset: HypothesisDataset, weights_A: Tensor, most: int = 2048) -> dict[str, Any]:
    """`summarise_modes` of a cache's observations, of at most `most` spread evenly over it."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()
    return summarise_modes([
        {"modes": modes.count}
        for _, chunks_BKTA in cache_blocks(dataset, rows) for modes in modes_per_observation(chunks_BKTA, weights_A)
    ])  # fmt: skip


# -- at run time -------------------------------------------------------------------------------------------------------


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
        for row_n in chosen.split(max(1, _NUMBERS_AT_ONCE // len(state_NOS))):
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
