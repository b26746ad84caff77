"""The senses: one small network each for camera images and point clouds."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPOTS = 16
"""Places in an image that a view's network looks at."""
OCTAVES = 4
"""Sines and cosines of a point's coordinates: waves of a length of 2 down to a quarter of the cloud's half extent."""


class ViewEncoder(nn.Module):
    """Images `[R, C, H, W]` to `[R, size]`: three convolutions with group norm, read out at `SPOTS` places.

    The read-out is a spatial soft arg-max (Finn et al. 2016, arXiv 1509.06113): every spot is a distribution over the
    feature map's cells. It gives its mean place, finer than a cell, and beside it the mean there of its share of the
    channels. Heat is standardised over the image and edges are repeated, not padded with zeros: without both, 2 of 18 short
    trainings on 24 pixels never began to learn, with either alone 1 or 2, with both none.
    Group norm knows no batch: a row's features are the same in any batch (Wu and He 2018, arXiv 1803.08494).
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        last = 2 * channels
        # four by four pixels at once: at batch 1 an encoder's time is spent where the images are still large
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, channels, 4, stride=4, bias=False), nn.GroupNorm(8, channels), nn.SiLU(),
            *_convolution(channels, channels, stride=1), *_convolution(channels, last, stride=2),
        )  # fmt: skip
        # it trains a third faster, and is no slower at batch 1
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heat = nn.Conv2d(last, SPOTS, 1, bias=False)
        self.sharpness_P1 = nn.Parameter(torch.full((SPOTS, 1), 2.0))
        self.size = 2 * SPOTS + last

    def forward(self, image_RCHW: Tensor) -> Tensor:
        map_RDHW = self.layers(image_RCHW.contiguous(memory_format=torch.channels_last))
        height, width = map_RDHW.shape[-2:]
        map_RDL = map_RDHW.flatten(2)
        # at batch 1 the number of operations is what costs: the 1 x 1 convolution is a matrix product, and the heat is
        # standardised by a layer norm over the cells
        heat_RPL = F.layer_norm(self.heat.weight.flatten(1) @ map_RDL, (height * width,), eps=1e-4)
        weight_RPL = (self.sharpness_P1 * heat_RPL).softmax(-1)
        place_RP2 = weight_RPL @ _cells(height, width, map_RDHW)
        seen_RPV = (weight_RPL[:, :, None] * map_RDL.unflatten(1, (SPOTS, -1))).sum(-1)
        return torch.cat([place_RP2.flatten(1), seen_RPV.flatten(1)], dim=-1)


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    # no bias before a group norm, which would take it away again
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, padding_mode="replicate")
    return convolution, nn.GroupNorm(8, outputs), nn.SiLU()


def _cells(height: int, width: int, like: Tensor) -> Tensor:
    """Places `[H * W, 2]` of the cells of a map, row by row: down and right, -1 to 1."""
    down, right = (torch.linspace(-1, 1, size, device=like.device, dtype=like.dtype) for size in (height, width))
    return torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1).flatten(0, 1)


class PointEncoder(nn.Module):
    """Normalised clouds `[R, N, 3+C]` to `[R, size]`, whatever the order of the points and however many there are.

    A perceptron for every point and the maximum over them (PointNet, Qi et al. 2017, arXiv 1612.00593), layer norms in it
    (DP3, arXiv 2403.03954), and sines and cosines of the coordinates before it, so that it can be precise (Tancik et al.
    2020, arXiv 2006.10739).
    """

    frequencies: Tensor

    def __init__(self, point_size: int, hidden: int = 64, size: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(point_size + 6 * OCTAVES, hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, size),
        )  # fmt: skip
        self.size = size

    def forward(self, points_RNX: Tensor) -> Tensor:
        angle = (points_RNX[..., :3, None] * self.frequencies).flatten(-2)
        waves_RNX = torch.cat([points_RNX, angle.sin(), angle.cos()], dim=-1)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        if not (self.training and torch.is_grad_enabled()):
            largest: Tensor = self.layers(waves_RNX).amax(-2)
            return largest
        # a maximum sends its gradient to one point alone, so only these are passed through with one: 1.7 times as fast.
        # The last bits may differ, so this is for training alone: features of a trained network are always the same
        with torch.no_grad():
            winner_RD = self.layers(waves_RNX).argmax(-2)
        hidden_RDH = self.layers[:-1](waves_RNX.gather(1, winner_RD[..., None].expand(-1, -1, waves_RNX.shape[-1])))
        return (hidden_RDH * last.weight).sum(-1) + last.bias
