"""Action selection at run time: which of a policy's samples an episode carries out, and what it remembers between replans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

KINDS = ("one", "consistent", "kept_latent", "typical")

STRAY = 4.0
"""A candidate this many times as far from its nearest fellow as is usual among them is a stray (kind ``typical``)."""

COPIES = 3
"""A candidate that comes this many times more is a way of its own, though no other one is near it (kind ``typical``)."""

ALIKE = 0.01
"""Plans that differ by less count as one: 1 % of half an action's range (root mean square over the chunk), about 2 mm on the
tasks here, half of what demonstrations are disturbed by. Where only one way is left a teacher's plans differ by less than a
millimetre, and the same teacher with 25 instead of 50 solver steps would be outside its own support (docs/lab-notes.md)."""


@dataclass(frozen=True)
class Selection:
    """How a chunk is chosen at a replan. A replan is every call of the policy, the first of an episode included.

    kind: ``one``: one sample. ``consistent``: of `candidates` samples the one nearest to the unexecuted rest of the last
    plan (temporal consistency, IMLE Policy, arXiv 2502.12371). ``kept_latent``: one sample, of a latent (or noise) that
    is drawn once and kept. ``typical``: the first of `candidates` samples that has another one near it, so that a plan
    between two ways, which stands alone, is not carried out; the ways keep about their shares.
    forget_every: the last plan or latent is forgotten at replans 0, forget_every, 2 forget_every, ..; 0: only at the
    first. With 1 either kind is ``one`` (``consistent`` has then drawn candidates for nothing).
    """

    kind: str = "one"
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
    def several(self) -> bool:
        """Whether several candidates are drawn, of which one is chosen."""
        return self.kind in ("consistent", "typical")

    @property
    def remembers(self) -> bool:
        """Whether something is kept from replan to replan, to be forgotten every `forget_every`."""
        return self.kind in ("consistent", "kept_latent")


ONE_SAMPLE = Selection()


@dataclass(frozen=True)
class Memory:
    """What one episode remembers; a fresh one begins an episode.

    replans: made so far. last_TA: the last plan, normalised. draw: `[1, ...]` the kept latent or noise, on the CPU.
    """

    replans: int = 0
    last_TA: Tensor | None = None
    draw: Tensor | None = None


def draw_candidates(
    selection: Selection, memory: Memory, draw: Callable[[int], Tensor], executed: int, horizon: int
) -> tuple[Tensor, Memory]:
    """The latents `[N, ...]` of one episode's next replan, and its memory with what is to be kept of them.

    draw: a number of samples to `[N, ...]`. N is the same for every episode of a batch: `candidates` for ``consistent``,
    else 1. It is 1, too, where plans are carried out to their end (executed >= horizon): nothing is left to compare with.
    """
    if selection.kind == "kept_latent":
        kept = draw(1) if memory.draw is None or _forgets(selection, memory) else memory.draw
        return kept, replace(memory, draw=kept)
    several = selection.several and (selection.kind == "typical" or executed < horizon)
    return draw(selection.candidates if several else 1), memory


def choose(
    selection: Selection, candidates_BNTA: Tensor, memories: Sequence[Memory], executed: int, weights_A: Tensor
) -> tuple[Tensor, list[Memory]]:
    """Each episode's choice `[B, T, A]` among its candidates, and its memory after this replan.

    candidates_BNTA: normalised chunks; memories: one per row; executed: how many actions of a plan are carried out;
    weights_A: the task's. An episode with nothing to compare takes its first candidate, which is one sample: the first
    replan, one at which the last plan is forgotten, plans that were carried out to their end.
    """
    index_B = torch.zeros(len(memories), dtype=torch.long, device=candidates_BNTA.device)
    if selection.kind == "consistent" and executed < candidates_BNTA.shape[2]:
        last = [None if _forgets(selection, memory) else memory.last_TA for memory in memories]
        rows = [row for row, chunk_TA in enumerate(last) if chunk_TA is not None]
        if rows:
            last_RTA = torch.stack([chunk_TA for chunk_TA in last if chunk_TA is not None])
            index_B[rows] = nearest_to_rest(candidates_BNTA[rows], last_RTA, executed, weights_A)
    if selection.kind == "typical":
        index_B = first_typical(candidates_BNTA, executed, weights_A)
    if candidates_BNTA.shape[1] == 1:
        chosen_BTA = candidates_BNTA[:, 0]
    else:
        chosen_BTA = candidates_BNTA[torch.arange(len(memories), device=index_B.device), index_B]
    after = [
        replace(memory, replans=memory.replans + 1, last_TA=chunk_TA)
        for memory, chunk_TA in zip(memories, chosen_BTA.unbind(), strict=True)
    ]
    return chosen_BTA, after


def first_typical(candidates_BNTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """Index `[B]` of the first candidate that is no stray.

    A stray's distance to the nearest other candidate is more than `STRAY` times the median of such distances, and more
    than `ALIKE`. Distance: over the actions that are carried out, as the objectives'. Copies of a candidate are no others,
    as a student with codes makes a stray twice now and then; but one with `COPIES` of them is no stray. A candidate with
    NaN is no stray, so that a broken policy is seen, not hidden.
    """
    count = candidates_BNTA.shape[1]
    if count < 3:
        return torch.zeros(len(candidates_BNTA), dtype=torch.long, device=candidates_BNTA.device)
    done_BNTA = candidates_BNTA[:, :, :executed]
    distance_BNN = _distance(done_BNTA[:, :, None], done_BNTA[:, None], weights_A)
    copy_BNN = distance_BNN < 1e-5  # of itself, too
    alone_BN = distance_BNN.masked_fill(copy_BNN, 1e6).amin(-1)
    alone_BN = alone_BN.masked_fill(copy_BNN.sum(-1) > COPIES, 0.0)
    usual_B1 = alone_BN.median(-1, keepdim=True).values
    return (~(alone_BN > (STRAY * usual_B1).clamp(min=ALIKE))).int().argmax(-1)


def nearest_to_rest(candidates_BNTA: Tensor, last_BTA: Tensor, executed: int, weights_A: Tensor) -> Tensor:
    """Index `[B]` of the candidate whose first actions are nearest to what the last plan had left (arXiv 2502.12371).

    Candidate action i stands beside action executed + i of the last plan. The distance is the
    objectives' over these T - executed actions; of equals the first. A candidate with NaN counts as nearest, so that a
    broken policy is seen, not hidden. Raises ValueError unless at least one action is left.
    """
    horizon = candidates_BNTA.shape[2]
    if not 1 <= executed < horizon:
        raise ValueError(
            f"got {executed} executed actions of a plan of {horizon}, expected 1 to {horizon - 1}: with nothing left of "
            "the last plan there is nothing to compare with"
        )
    return _distance(candidates_BNTA[:, :, : horizon - executed], last_BTA[:, None, executed:], weights_A).argmin(1)


def _distance(first: Tensor, second: Tensor, weights_A: Tensor) -> Tensor:
    """Weighted root mean square difference `[..]` of chunks `[.., T, A]`, as the objectives'."""
    scale_A = (weights_A / weights_A.sum()).sqrt()
    return (first * scale_A - second * scale_A).square().sum(-1).mean(-1).sqrt()


def _forgets(selection: Selection, memory: Memory) -> bool:
    every = selection.forget_every
    return memory.replans == 0 or (every > 0 and memory.replans % every == 0)
