"""Action selection at run time: which of a policy's samples an episode executes, and what it keeps between replans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

KINDS = ("single", "temporal_consistency", "kept_latent", "outlier_rejection")

OUTLIER_RATIO = 4.0
"""A candidate is an outlier when its nearest neighbour is this many times as far away as the median candidate's."""

MODE_DUPLICATES = 3
"""A candidate with at least this many exact duplicates is a mode of its own, however far the others are: never an outlier."""

SAME_PLAN = 0.01
"""Plans nearer than this count as one: 1 % of half an action's range (root mean square over the chunk), about 2 mm on the
tasks here and half the noise of the demonstrations. Where only one mode is left, a teacher's plans differ by less than a
millimetre; without this bound the same teacher with 25 instead of 50 solver steps would be outside its own support
(docs/lab-notes.md)."""


@dataclass(frozen=True)
class Selection:
    """How one chunk is selected among a policy's samples at a replan. Every query of the policy is a replan.

    kind:
        ``single``: one sample.
        ``outlier_rejection``: the first of `candidates` samples that is no outlier (`first_inlier`), so that a plan between
        two modes is not executed; the modes keep about their shares.
        ``temporal_consistency``: of `candidates` samples the one nearest to the unexecuted remainder of the last plan
        (`nearest_to_remainder`; IMLE Policy, arXiv 2502.12371).
        ``kept_latent``: one sample, of a latent (or noise) that is drawn once and kept.
    candidates: samples per replan, for the two kinds that select among several.
    forget_every: the last plan or latent is forgotten at replans 0, forget_every, 2 forget_every, ..; 0: only at the first.
        With 1 both ``temporal_consistency`` and ``kept_latent`` act as ``single``.

    Raises ValueError for an unknown kind or a number out of range.
    """

    kind: str = "single"
    candidates: int = 32
    forget_every: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"selection: got {self.kind!r}, expected one of {list(KINDS)}")
        if self.candidates < 1:
            raise ValueError(f"candidates: got {self.candidates}, expected at least 1 (32 are usual)")
        if self.forget_every < 0:
            raise ValueError(f"forget_every: got {self.forget_every}, expected at least 0 (0 never forgets, 5 is usual)")

    @property
    def uses_candidates(self) -> bool:
        """Whether this kind selects among several candidates."""
        return self.kind in ("temporal_consistency", "outlier_rejection")

    @property
    def has_memory(self) -> bool:
        """Whether something is kept from replan to replan, until `forget_every` clears it."""
        return self.kind in ("temporal_consistency", "kept_latent")

    def drawn(self, executed: int, horizon: int) -> int:
        """N, samples of a replan that executes `executed` of T = `horizon` actions.

        1 for ``temporal_consistency`` when plans are executed to their end: nothing is left to compare with.
        """
        several = self.uses_candidates and (self.kind == "outlier_rejection" or executed < horizon)
        return self.candidates if several else 1


SINGLE_SAMPLE = Selection()


@dataclass(frozen=True)
class Memory:
    """What one episode keeps between replans; a new episode starts with a new one.

    replans: replans so far. last_TA: the last plan, normalised. draw: `[1, ...]` the kept latent or noise, on the CPU.
    """

    replans: int = 0
    last_TA: Tensor | None = None
    draw: Tensor | None = None


def draw_candidates(
    selection: Selection, memory: Memory, draw: Callable[[int], Tensor], executed: int, horizon: int
) -> tuple[Tensor, Memory]:
    """The latents `[N, ...]` of one episode's next replan, and its memory with the latent to keep.

    draw: maps a number of samples N to latents `[N, ...]`. executed: actions of a plan that are executed before the next
    replan; horizon: T. N is the same for every episode of a batch: `Selection.drawn`.
    """
    if selection.kind == "kept_latent":
        kept = draw(1) if memory.draw is None or _forgets(selection, memory) else memory.draw
        return kept, replace(memory, draw=kept)
    return draw(selection.drawn(executed, horizon)), memory


def choose(
    selection: Selection, candidates_BNTA: Tensor, memories: Sequence[Memory], executed: int, weights_A: Tensor
) -> tuple[Tensor, list[Memory]]:
    """Each episode's selected chunk `[B, T, A]`, and its memory after this replan.

    candidates_BNTA: normalised chunks; memories: one per episode; executed: number of actions executed per plan;
    weights_A: the task's action weights. An episode without a plan to compare with takes its first candidate: at the first
    replan, when the last plan is forgotten, and when plans are executed to their end.
    """
    index_B = torch.zeros(len(memories), dtype=torch.long, device=candidates_BNTA.device)
    rows = [row for row, memory in enumerate(memories) if remembers(selection, memory, executed, candidates_BNTA.shape[2])]
    if rows:
        last_RTA = torch.stack([memories[row].last_TA for row in rows])  # type: ignore[misc]
        index_B[rows] = nearest_to_remainder(candidates_BNTA[rows], last_RTA, executed, weights_A)
    if selection.kind == "outlier_rejection":
        index_B = first_inlier(candidates_BNTA, executed, weights_A)
    if candidates_BNTA.shape[1] == 1:
        chosen_BTA = candidates_BNTA[:, 0]
    else:
        chosen_BTA = candidates_BNTA[torch.arange(len(memories), device=index_B.device), index_B]
    after = [
        replace(memory, replans=memory.replans + 1, last_TA=chunk_TA)
        for memory, chunk_TA in zip(memories, chosen_BTA.unbind(), strict=True)
    ]
    return chosen_BTA, after


def remembers(selection: Selection, memory: Memory, executed: int, horizon: int) -> bool:
    """Whether the next chunk is compared with an episode's last plan."""
    compares = selection.kind == "temporal_consistency" and executed < horizon
    return compares and not _forgets(selection, memory) and memory.last_TA is not None


def first_inlier(candidates_BNTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """Index `[B]` of the first candidate that is no outlier (`are_inliers`). Fewer than three candidates: the first."""
    if candidates_BNTA.shape[1] < 3:
        return torch.zeros(len(candidates_BNTA), dtype=torch.long, device=candidates_BNTA.device)
    return are_inliers(candidates_BNTA, executed, weights_A).int().argmax(-1)


def are_inliers(candidates_BNTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """Which candidates are no outliers, `[B, N]`; all of them where there are fewer than three.

    An outlier's distance to its nearest neighbour is above `OUTLIER_RATIO` times the median of these distances and above
    `SAME_PLAN`. Distances are those of the objectives, over the `executed` first actions. Exact duplicates are not neighbours,
    because a student with codes now and then draws one outlier twice; a candidate with `MODE_DUPLICATES` duplicates is no
    outlier. Nor is one with NaN, so that a broken policy is seen, not hidden.

    candidates_BNTA: normalised chunks; weights_A: the task's action weights.
    """
    if candidates_BNTA.shape[1] < 3:
        return torch.ones(candidates_BNTA.shape[:2], dtype=torch.bool, device=candidates_BNTA.device)
    executed_BNTA = candidates_BNTA[:, :, :executed]
    distance_BNN = _distance(executed_BNTA[:, :, None], executed_BNTA[:, None], weights_A)
    duplicate_BNN = distance_BNN < 1e-5  # of itself, too
    nearest_BN = distance_BNN.masked_fill(duplicate_BNN, 1e6).amin(-1)
    nearest_BN = nearest_BN.masked_fill(duplicate_BNN.sum(-1) > MODE_DUPLICATES, 0.0)
    # the lower of the two middle ones, as torch.median, which ONNX does not have
    median_B1 = nearest_BN.sort(-1).values[:, (nearest_BN.shape[1] - 1) // 2, None]
    return ~(nearest_BN > (OUTLIER_RATIO * median_B1).clamp(min=SAME_PLAN))


def alternatives(selection: Selection, candidates_NTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """The chunks `[R, T, A]` to try, in their order, where an environment refuses the selected one of these candidates.

    With ``outlier_rejection`` the inliers after the selected one. The other kinds have none: one sample has no alternative,
    and candidates farther from the last plan were not selected for a reason.
    """
    if selection.kind != "outlier_rejection":
        return candidates_NTA[:0]
    return candidates_NTA[are_inliers(candidates_NTA[None], executed, weights_A)[0]][1:]


def nearest_to_remainder(candidates_BNTA: Tensor, last_BTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """Index `[B]` of the candidate whose first actions are nearest to the remainder of the last plan (arXiv 2502.12371).

    Action i of a candidate is compared with action executed + i of the last plan; the distance is the objectives', over these
    T - executed actions. Ties go to the first. A candidate with NaN counts as nearest, so that a broken policy is seen, not
    hidden. Raises ValueError unless 1 <= executed < T.
    """
    horizon = candidates_BNTA.shape[2]
    if not 1 <= executed < horizon:
        raise ValueError(
            f"got {executed} executed actions of a plan of {horizon}, expected 1 to {horizon - 1}: with nothing left of "
            "the last plan there is nothing to compare with"
        )
    return _distance(candidates_BNTA[:, :, : horizon - executed], last_BTA[:, None, executed:], weights_A).argmin(1)


def _distance(first: Tensor, second: Tensor, weights_A: Tensor) -> Tensor:
    """Weighted root mean square difference `[..]` of chunks `[.., T, A]`, as in the objectives."""
    scale_A = (weights_A / weights_A.sum()).sqrt()
    return (first * scale_A - second * scale_A).square().sum(-1).mean(-1).sqrt()


def _forgets(selection: Selection, memory: Memory) -> bool:
    every = selection.forget_every
    return memory.replans == 0 or (every > 0 and memory.replans % every == 0)
