"""The unified encoder: state, colour images, depth images and points of O steps to one feature, by attention over tokens."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.specs import DEPTH, IMAGES, POINTS, STATE
from teachers.contract import Observation
from teachers.networks.modalities import PointEncoder, ViewEncoder, ViewPair
from teachers.networks.observations import group_by_kind
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import StateEncoder


class UnifiedEncoder(nn.Module):
    """Normalised sources `[B, O, ...]` to one feature `[B, F]`; see `teachers.networks.observations.EncoderShape`.

    Each source gives one token per observation step. Cameras of one kind share their convolutions, whose filters are the
    same problem for all of them, and each has its own last layer, because each looks from elsewhere. A token is marked
    with its source and its step. The tokens are fused by attention, so that a source can be left out without a trace.
    """

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        seen = shape.encoder
        assert seen is not None
        self.sources, width = seen.sources, seen.width
        self.state = StateEncoder(1, len(seen.state_names), width) if seen.state_names else None
        self.colour = ViewEncoder(3, seen.channels) if seen.cameras else None
        self.depth = ViewEncoder(2, seen.channels) if seen.depth_cameras else None
        self._pair = ViewPair(self.colour, self.depth) if self.colour is not None and self.depth is not None else None
        self.points = PointEncoder(seen.point_size) if seen.num_points else None
        self.to_token = nn.ModuleDict()  # the state's token is made already
        for kind, sense in ((IMAGES, self.colour), (DEPTH, self.depth), (POINTS, self.points)):
            for name in self.sources:
                if sense is not None and name.startswith(kind):
                    self.to_token[_key(name)] = nn.Linear(sense.size, width)
        self.source_MF = nn.Parameter(0.02 * torch.randn(len(self.sources), width))
        self.step_OF = nn.Parameter(0.02 * torch.randn(shape.observation_steps, width))
        self.fusion = Fusion(width, seen.heads, seen.queries)

    def forward(self, inputs: Observation, kept_BM: Tensor | None = None) -> Tensor:
        """`[B, F]` of the sources that are in `inputs`, all or some of this encoder's.

        inputs: as `teachers.networks.normalisation` makes them: states `[B, O, S']`, images `[B, O, 3, H, W]`, depth
        `[B, O, 2, H, W]`, points `[B, O, N, 3+C]`; kept_BM: bool, which sources of `inputs`, in this encoder's order, each
        row is shown; none: all.
        """
        sources = [name for name in self.sources if name in inputs]
        return self.fuse(group_by_kind(inputs, sources), sources, kept_BM)

    def fuse(self, rows: Observation, sources: Collection[str], kept_BM: Tensor | None = None) -> Tensor:
        """The same of normalised sources `[V, B, O, ..]` by kind, of these names, in this encoder's order."""
        names = iter(sources)
        tokens = [self._token(next(names), each) for seen in self._see(rows).values() for each in seen]
        source_MF: Tensor = self.source_MF
        if len(sources) < len(self.sources):
            source_MF = source_MF[[self.sources.index(name) for name in sources]]
        tokens_BMOF = torch.stack(tokens, dim=1) + (source_MF[:, None] + self.step_OF)
        kept_BL = None if kept_BM is None else kept_BM.repeat_interleave(tokens_BMOF.shape[2], dim=1)
        feature_BF: Tensor = self.fusion(tokens_BMOF.flatten(1, 2), kept_BL)
        return feature_BF

    def _see(self, rows: Observation) -> Observation:
        """What the senses make of each row, `[V, B, O, ..]`; all views and steps of a kind go through its network together."""
        flat = {kind: value.flatten(0, 2) for kind, value in rows.items()}
        seen: Observation = {}
        both = [flat[kind] for kind in (IMAGES, DEPTH) if kind in flat]
        if self._pair is not None and len(both) == 2 and len(both[0]) == len(both[1]) and not torch.is_grad_enabled():
            seen[IMAGES], seen[DEPTH] = self._pair(*both).unbind(1)
        senses = self._senses()
        return {
            kind: (seen[kind] if kind in seen else senses[kind](value)).unflatten(0, rows[kind].shape[:3])
            for kind, value in flat.items()
        }

    def _token(self, name: str, seen_BOD: Tensor) -> Tensor:
        """`[B, O, F]`; the state's is one already."""
        return seen_BOD if name == STATE else self.to_token[_key(name)](seen_BOD)

    def _senses(self) -> dict[str, nn.Module]:
        """By kind."""
        every = {STATE: self.state, IMAGES: self.colour, DEPTH: self.depth, POINTS: self.points}
        return {kind: sense for kind, sense in every.items() if sense is not None}


def _key(name: str) -> str:
    """A source's name as that of a module, which has no dots."""
    return name.removeprefix("observation.").replace(".", "/")


class Fusion(nn.Module):
    """Tokens `[B, L, F]` to one feature `[B, F]`: learned queries ask the tokens, and a perceptron joins their answers.

    (Pooling by attention with seed vectors: Set Transformer, Lee et al. 2019, arXiv 1810.00825, section 3.2.)
    """

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_QF = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(width)
        self.to_key = nn.Linear(width, width, bias=False)  # a bias adds the same to every score of a query
        self.to_value = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(queries * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, tokens_BLF: Tensor, kept_BL: Tensor | None = None) -> Tensor:
        """kept_BL: bool; a token that is not kept gets weight 0, exactly. At least one must be kept in every row."""
        batch, length, width = tokens_BLF.shape
        normed_BLF = self.norm(tokens_BLF)

        def by_head(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (self.heads, width // self.heads)).transpose(-3, -2)

        query = by_head(self.query_QF).expand(batch, -1, -1, -1)
        key, value = by_head(self.to_key(normed_BLF)), by_head(self.to_value(normed_BLF))
        mask = None if kept_BL is None else kept_BL[:, None, None].expand(-1, -1, len(self.query_QF), -1)
        answer_BHQD = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        feature_BF: Tensor = self.layers(answer_BHQD.transpose(1, 2).flatten(1))
        return feature_BF
