"""The modality encoders: one small network each for camera images and point clouds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.derived import DerivedValue

KEYPOINTS = 16
"""Spatial soft arg-max keypoints per image."""
OCTAVES = 4
"""Frequencies of the positional encoding of points: wavelengths from 2 down to a quarter of the cloud's half extent."""
MODALITIES: dict[str, Callable[[int], nn.Module]] = {}
"""Further modalities by the name of their feature, or its beginning: from D, numbers per observation step, to a module that
maps raw `[R, D]` to features `[R, module.size]`. It normalises them itself."""


def modality_of(name: str) -> str:
    """The entry of MODALITIES that a feature belongs to; "" for none."""
    return next((kind for kind in MODALITIES if name.startswith(kind)), "")


def new_modality(name: str, numbers: int) -> nn.Module:
    """The encoder of a feature of D = `numbers`. Raises ValueError for a feature of no registered modality."""
    if not modality_of(name):
        raise ValueError(
            f"{name}: got no modality of this name, expected one of {list(MODALITIES)} "
            "(teachers.networks.modalities.MODALITIES). Add the file and the line of docs/extending.md, section A modality"
        )
    return MODALITIES[modality_of(name)](numbers)


class ViewEncoder(nn.Module):
    """Images `[R, C, H, W]` to features `[R, size]`: three convolutions with group norm, read out at `KEYPOINTS` keypoints.

    The read-out is a spatial soft arg-max (Finn et al. 2016, arXiv 1509.06113): a keypoint is a distribution over the feature
    map's cells. Its features are its mean position, at sub-cell resolution, and the mean of its share of the channels there.
    Heat maps are standardised over the image, and edges are replicated instead of zero-padded: without both, 2 of 18 short
    trainings on 24 pixels never began to learn, with either alone 1 or 2, with both none.
    Group norm does not mix the batch: a row's features are the same in any batch (Wu and He 2018, arXiv 1803.08494).
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        last = 2 * channels
        # 4 x 4 patches: at batch 1 most time goes where the images are still large
        self.layers = nn.Sequential(
            Patches(inputs, channels, 4), nn.GroupNorm(8, channels), nn.SiLU(),
            *_convolution(channels, channels, stride=1), *_convolution(channels, last, stride=2),
        )  # fmt: skip
        # trains a third faster and is no slower at batch 1; the patches are a matrix, whose layout stays
        self.layers[1:].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heat = nn.Conv2d(last, KEYPOINTS, 1, bias=False)
        self.sharpness_P1 = nn.Parameter(torch.full((KEYPOINTS, 1), 2.0))
        self.size = 2 * KEYPOINTS + last

    def forward(self, image_RCHW: Tensor) -> Tensor:
        """Features `[R, size]`."""
        weight = self.heat.weight.flatten(1).T
        return _read_out(self.layers(image_RCHW), weight[None], self.sharpness_P1[None])[:, 0]


class ViewPair:
    """Two view encoders of equal sizes as one grouped network: the same features with half as many operations.

    For inference only; they are trained separately.
    """

    def __init__(self, first: ViewEncoder, second: ViewEncoder) -> None:
        self._both = first, second
        # collected once: this takes as long as a layer
        self._weights = [*_weights(first), *_weights(second)]
        self._joined: DerivedValue[_PairWeights] = DerivedValue()

    def __call__(self, first_RCHW: Tensor, second_RCHW: Tensor) -> Tensor:
        """`[R, 2, size]`: the first encoder's features of its images, and the second's of as many."""
        first, second = self._both
        weights = self._joined.get(self._weights, self._join)
        map_RDHW = torch.cat([first.layers[0](first_RCHW), second.layers[0](second_RCHW)], dim=1)
        for layer, joined in zip(list(first.layers)[1:], weights.layers, strict=True):
            if isinstance(layer, nn.GroupNorm):
                weight, bias = joined
                map_RDHW = F.group_norm(map_RDHW, 2 * layer.num_groups, weight, bias, layer.eps)
            elif isinstance(layer, nn.Conv2d):
                padded = F.pad(map_RDHW, layer._reversed_padding_repeated_twice, mode="replicate")
                map_RDHW = F.conv2d(padded, joined[0], stride=layer.stride, groups=2)
            else:
                map_RDHW = layer(map_RDHW)
        return _read_out(map_RDHW, weights.heat_GDP, weights.sharpness_GP1)

    def _join(self) -> _PairWeights:
        first, second = self._both
        layers = []
        for mine, its in zip(list(first.layers)[1:], list(second.layers)[1:], strict=True):
            joined = [torch.cat(pair) for pair in zip(mine.parameters(), its.parameters(), strict=True)]
            layers.append([each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each for each in joined])
        return _PairWeights(
            layers, torch.stack([each.heat.weight.flatten(1).T for each in self._both]),
            torch.stack([each.sharpness_P1 for each in self._both]),
        )  # fmt: skip


def _weights(encoder: ViewEncoder) -> list[Tensor]:
    """The weights of a view encoder, without those of its patches."""
    return [*encoder.layers[1:].parameters(), encoder.heat.weight, encoder.sharpness_P1]


class _PairWeights(NamedTuple):
    """The joined weights of a `ViewPair`: of every layer after the patches, and of the read-out; G = 2."""

    layers: list[list[Tensor]]
    heat_GDP: Tensor
    sharpness_GP1: Tensor


def _read_out(map_RDHW: Tensor, heat_GDP: Tensor, sharpness_GP1: Tensor) -> Tensor:
    """Positions and features of the keypoints, `[R, G, size]`, in feature maps whose channels form G groups."""
    height, width = map_RDHW.shape[-2:]
    map_RGLD = map_RDHW.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (len(heat_GDP), -1)).transpose(1, 2)
    # at batch 1 the number of operations counts: the 1 x 1 convolution is a matrix product, a layer norm over the cells
    # standardises the heat, and a keypoint averages all channels, of which its own share is kept
    heat_RGPL = F.layer_norm((map_RGLD @ heat_GDP).transpose(2, 3), (height * width,), eps=1e-4)
    weight_RGPL = (sharpness_GP1 * heat_RGPL).softmax(-1)
    position_RGP2 = weight_RGPL @ _cells(height, width, map_RDHW)
    every_RGPPV = (weight_RGPL @ map_RGLD).unflatten(3, (KEYPOINTS, -1))
    feature_RGPV = every_RGPPV.diagonal(dim1=2, dim2=3).transpose(2, 3)
    return torch.cat([position_RGP2.flatten(2), feature_RGPV.flatten(2)], dim=-1)


class Patches(nn.Conv2d):
    """A convolution with non-overlapping patches as one matrix product: half the time at batch 1. Output: channels-last."""

    def __init__(self, inputs: int, outputs: int, patch: int) -> None:
        super().__init__(inputs, outputs, patch, stride=patch, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        size = self.kernel_size[0]
        rows, columns = (each // size for each in input.shape[-2:])
        whole = input[..., : rows * size, : columns * size]  # incomplete patches are dropped
        # rows first, then columns: two copies of long runs are faster than one of short runs
        by_row = whole.unflatten(2, (rows, size)).transpose(1, 2).flatten(2, 3)
        patches = by_row.unflatten(3, (columns, size)).transpose(2, 3).flatten(3)
        return F.linear(patches, self.weight.flatten(1)).permute(0, 3, 1, 2)


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    # no bias before a group norm, which would remove it
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, padding_mode="replicate")
    return convolution, nn.GroupNorm(8, outputs), nn.SiLU()


def _cells(height: int, width: int, like: Tensor) -> Tensor:
    """Positions `[H * W, 2]` of a map's cells, row by row: down and right, -1 to 1."""
    if torch.compiler.is_compiling():  # an exported graph computes its own
        return _positions(height, width, like.device, like.dtype)
    return _cached_positions(height, width, like.device, like.dtype)


def _positions(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training later
        down, right = (torch.linspace(-1, 1, size, device=device, dtype=dtype) for size in (height, width))
        return torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1).flatten(0, 1)


_cached_positions = lru_cache(maxsize=16)(_positions)


class PointEncoder(nn.Module):
    """Normalised clouds `[R, N, 3+C]` to features `[R, size]`, invariant to the order of the points; N may vary.

    A perceptron with layer norms for every point and the maximum over the points (PointNet, Qi et al. 2017, arXiv 1612.00593;
    DP3, arXiv 2403.03954), after a positional encoding by sines and cosines for precision (Tancik et al. 2020, arXiv
    2006.10739). With `keypoints`, the mean positions of so many distributions over the points are appended, as a spatial soft
    arg-max does for images: a learned heat says how much each point counts. A maximum finds what there is, a keypoint says
    precisely where.
    """

    frequencies: Tensor

    def __init__(self, point_size: int, keypoints: int = 0, hidden: int = 64, size: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(point_size + 6 * OCTAVES, hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, size),
        )  # fmt: skip
        self.heat = (
            nn.Sequential(nn.Linear(point_size + 6 * OCTAVES, hidden), nn.SiLU(), nn.Linear(hidden, keypoints))
            if keypoints else None
        )  # fmt: skip
        self.size = size + 3 * keypoints

    def forward(self, points_RNX: Tensor) -> Tensor:
        """Features `[R, size]`."""
        angle = (points_RNX[..., :3, None] * self.frequencies).flatten(-2)
        waves_RNX = torch.cat([points_RNX, angle.sin(), angle.cos()], dim=-1)
        features_RD = self._maximum(waves_RNX)
        if self.heat is None:
            return features_RD
        weight_RPN = self.heat(waves_RNX).transpose(1, 2).softmax(-1)
        return torch.cat([features_RD, (weight_RPN @ points_RNX[..., :3]).flatten(1)], dim=-1)

    def _maximum(self, waves_RNX: Tensor) -> Tensor:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        if not (self.training and torch.is_grad_enabled()):
            largest: Tensor = self.layers(waves_RNX).amax(-2)
            return largest
        # a maximum passes its gradient to one point alone, so only the winners run with gradient: 1.7 times as fast. The
        # last bits may differ, so this is for training only: features of a trained network are always the same
        with torch.no_grad():
            winner_RD = self.layers(waves_RNX).argmax(-2)
        hidden_RDH = self.layers[:-1](waves_RNX.gather(1, winner_RD[..., None].expand(-1, -1, waves_RNX.shape[-1])))
        return (hidden_RDH * last.weight).sum(-1) + last.bias
