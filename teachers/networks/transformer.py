"""The networks of teachers and students: a state encoder and a transformer over patches of the action chunk."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.shapes import PolicyShape

FEW = 8
"""Chunks below which the general attention kernel is faster than a few small operations."""


class StateEncoder(nn.Module):
    """Normalised state history `[B, O, S]` to one conditioning vector `[B, C]`, by a two-layer perceptron."""

    def __init__(self, observation_steps: int, state_size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(1), nn.Linear(observation_steps * state_size, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, state_BOS: Tensor) -> Tensor:
        """Condition `[B, C]`."""
        condition_BC: Tensor = self.layers(state_BOS)
        return condition_BC


class TimeEmbedding(nn.Module):
    """Flow time `[B]` in [0, 1] to `[B, C]`: sines and cosines, then a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0.0, math.log(1000.0), width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time_B: Tensor) -> Tensor:
        """Embedding `[B, C]`."""
        angle = time_B[:, None] * self.frequencies
        embedding_BC: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return embedding_BC


class Block(nn.Module):
    """Transformer block with scales, shifts and gates from the condition (adaLN-zero: DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_feedforward = nn.LayerNorm(width, elementwise_affine=False)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens_BRC: Tensor, condition_BC: Tensor, length: int) -> Tensor:
        """Tokens `[B, R, C]`: all R = (N / B) L of the chunks of one observation, which share its condition. length: L."""
        scale_a, shift_a, gate_a, scale_f, shift_f, gate_f = self.modulation(condition_BC)[:, None].chunk(6, dim=-1)
        normed = self.norm_attention(tokens_BRC) * (1 + scale_a) + shift_a
        qkv_NL3HD = self.to_qkv(normed).view(-1, length, 3, self.heads, tokens_BRC.shape[-1] // self.heads)
        tokens_BRC = tokens_BRC + gate_a * self.from_attention(attend(qkv_NL3HD).reshape(tokens_BRC.shape))
        normed = self.norm_feedforward(tokens_BRC) * (1 + scale_f) + shift_f
        return tokens_BRC + gate_f * self.feedforward(normed)


def attend(qkv_NL3HD: Tensor) -> Tensor:
    """Attention of every token to all tokens of its chunk, `[N, L, H, D]`; scores are divided by sqrt(D).

    Of two tokens the softmax is a sigmoid of the difference of their scores: from a few chunks on, some small operations take
    less time than the general kernel (a sixth of it for 768 chunks, a third in training).
    """
    query, key, value = qkv_NL3HD.unbind(2)
    # a compiled or exported graph takes any number of chunks
    if key.shape[1] != 2 or (not torch.compiler.is_compiling() and len(key) < FEW):
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    score_N2H1 = (query * (key[:, :1] - key[:, 1:])).sum(-1, keepdim=True) * key.shape[-1] ** -0.5
    return torch.addcmul(value[:, 1:], score_N2H1.sigmoid(), value[:, :1] - value[:, 1:])


class TrajectoryTransformer(nn.Module):
    """Chunk-shaped inputs `[N, T, A]` and conditions `[B, C]` to chunk-shaped outputs `[N, T, A]`.

    N is a multiple of B: the first N / B chunks belong to the first condition, and so on. `patch` consecutive actions form one
    token, so that a chunk of 16 steps needs two tokens instead of 16.
    """

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        self.patch = shape.patch
        size = shape.patch * shape.action_size
        self.to_tokens = nn.Linear(size, shape.width)
        self.position = nn.Parameter(0.02 * torch.randn(shape.horizon // shape.patch, shape.width))
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)
        self.from_tokens = nn.Linear(shape.width, size)
        nn.init.zeros_(self.from_tokens.bias)

    def forward(self, chunk_NTA: Tensor, condition_BC: Tensor) -> Tensor:
        """Chunks `[N, T, A]`."""
        batch, horizon, actions = chunk_NTA.shape
        length = horizon // self.patch
        patches = chunk_NTA.reshape(batch, length, self.patch * actions)
        tokens_BRC = (self.to_tokens(patches) + self.position).view(len(condition_BC), -1, self.position.shape[-1])
        condition_BC = F.silu(condition_BC)
        for block in self.blocks:
            tokens_BRC = block(tokens_BRC, condition_BC, length)
        output: Tensor = self.from_tokens(self.norm(tokens_BRC))
        return output.reshape(batch, horizon, actions)
