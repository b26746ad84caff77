"""The unified encoder: state, colour images, depth images and points of O steps to one feature, by attention over tokens."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.specs import DEPTH, IMAGES, POINTS, STATE
from teachers.contract import Observation
from teachers.networks.modalities import PointEncoder, ViewEncoder, ViewPair, new_modality
from teachers.networks.observations import group_by_kind
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import StateEncoder


class UnifiedEncoder(nn.Module):
    """Normalised sources `[B, O, ...]` to one feature `[B, F]`; see `teachers.networks.shapes.EncoderShape`.

    Each source gives one token per observation step. Cameras of one modality share their convolutions and have a last layer
    each, because their viewpoints differ. Learned embeddings mark a token's source and step. Attention fuses the tokens, so
    that a dropped source has no effect at all.
    """

    def __init__(self, shape: PolicyShape) -> None:
        """Raises ValueError for a feature of `encoder.vectors` whose modality is not registered."""
        super().__init__()
        encoder = shape.encoder
        assert encoder is not None
        self.sources, width = encoder.sources, encoder.width
        self.state = StateEncoder(1, len(encoder.state_names), width) if encoder.state_names else None
        self.colour = ViewEncoder(3, encoder.channels) if encoder.cameras else None
        self.depth = ViewEncoder(2, encoder.channels) if encoder.depth_cameras else None
        self._pair = ViewPair(self.colour, self.depth) if self.colour is not None and self.depth is not None else None
        self.points = PointEncoder(encoder.point_size, encoder.keypoints) if encoder.num_points else None
        self.vectors = nn.ModuleDict({_key(name): new_modality(name, size) for name, size in encoder.vectors})
        self.to_token = nn.ModuleDict()  # the state's encoder already outputs its token
        for kind, modality in ((IMAGES, self.colour), (DEPTH, self.depth), (POINTS, self.points)):
            for name in self.sources:
                if modality is not None and name.startswith(kind):
                    self.to_token[_key(name)] = nn.Linear(modality.size, width)
        for key, further in self.vectors.items():
            self.to_token[key] = nn.Linear(further.size, width)  # type: ignore[arg-type]
        self.source_MF = nn.Parameter(0.02 * torch.randn(len(self.sources), width))
        self.step_OF = nn.Parameter(0.02 * torch.randn(shape.observation_steps, width))
        self.fusion = Fusion(width, encoder.heads, encoder.queries)

    def forward(self, inputs: Observation, kept_BM: Tensor | None = None) -> Tensor:
        """The feature `[B, F]` of the sources in `inputs`, all or some of this encoder's.

        inputs: normalised (`teachers.networks.normalisation`): states `[B, O, S']`, images `[B, O, 3, H, W]`, depth
        `[B, O, 2, H, W]`, points `[B, O, N, 3+C]`; kept_BM: bool, which of these sources, in this encoder's order, each row
        keeps; None: all.
        """
        sources = [name for name in self.sources if name in inputs]
        return self.fuse(group_by_kind(inputs, sources), sources, kept_BM)

    def fuse(self, rows: Observation, sources: Collection[str], kept_BM: Tensor | None = None) -> Tensor:
        """The feature `[B, F]` of normalised sources `[V, B, O, ..]` by kind; sources: their names, in this encoder's order."""
        names = iter(sources)
        tokens = [self._token(next(names), each) for encoded in self._encode_modalities(rows).values() for each in encoded]
        source_MF: Tensor = self.source_MF
        if len(sources) < len(self.sources):
            source_MF = source_MF[[self.sources.index(name) for name in sources]]
        tokens_BMOF = torch.stack(tokens, dim=1) + (source_MF[:, None] + self.step_OF)
        kept_BL = None if kept_BM is None else kept_BM.repeat_interleave(tokens_BMOF.shape[2], dim=1)
        feature_BF: Tensor = self.fusion(tokens_BMOF.flatten(1, 2), kept_BL)
        return feature_BF

    def _encode_modalities(self, rows: Observation) -> Observation:
        """Each modality's features `[V, B, O, ..]`; all views and steps of a modality go through its network together."""
        flat = {kind: value.flatten(0, 2) for kind, value in rows.items()}
        paired: Observation = {}
        both = [flat[kind] for kind in (IMAGES, DEPTH) if kind in flat]
        if self._pair is not None and len(both) == 2 and len(both[0]) == len(both[1]) and not torch.is_grad_enabled():
            paired[IMAGES], paired[DEPTH] = self._pair(*both).unbind(1)
        encoders = self._modality_encoders()
        return {
            kind: (paired[kind] if kind in paired else encoders[kind](value)).unflatten(0, rows[kind].shape[:3])
            for kind, value in flat.items()
        }

    def _token(self, name: str, encoded_BOD: Tensor) -> Tensor:
        """`[B, O, F]`; the state's encoding is its token."""
        return encoded_BOD if name == STATE else self.to_token[_key(name)](encoded_BOD)

    def _modality_encoders(self) -> dict[str, nn.Module]:
        """By kind of source; those of further modalities by the feature's name."""
        every: dict[str, nn.Module | None] = {STATE: self.state, IMAGES: self.colour, DEPTH: self.depth, POINTS: self.points}
        every |= {name: self.vectors[_key(name)] for name in self.sources if _key(name) in self.vectors}
        return {kind: encoder for kind, encoder in every.items() if encoder is not None}


def _key(name: str) -> str:
    """A source's name as a module's name, which cannot have dots."""
    return name.removeprefix("observation.").replace(".", "/")


class Fusion(nn.Module):
    """Tokens `[B, L, F]` to one feature `[B, F]`: learned queries attend to the tokens, and a perceptron joins the results.

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
        """The feature `[B, F]`. kept_BL: bool, other tokens get weight exactly 0; each row must keep at least one."""
        batch, length, width = tokens_BLF.shape
        normed_BLF = self.norm(tokens_BLF)

        def by_head(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (self.heads, width // self.heads)).transpose(-3, -2)

        query = by_head(self.query_QF).expand(batch, -1, -1, -1)
        key, value = by_head(self.to_key(normed_BLF)), by_head(self.to_value(normed_BLF))
        mask = None if kept_BL is None else kept_BL[:, None, None].expand(-1, -1, len(self.query_QF), -1)
        attended_BHQD = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        feature_BF: Tensor = self.layers(attended_BHQD.transpose(1, 2).flatten(1))
        return feature_BF
