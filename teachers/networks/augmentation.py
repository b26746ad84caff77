"""Augmentation of observations in training: shifted images, colour and point jitter, dropped sources; each row by its seed.

A row's augmentation is a function of its seed, as a hypothesis' noise is. It does not depend on the batch, the number of
processes or any random state, so a resumed training needs nothing stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.specs import DEPTH, IMAGES, POINTS
from teachers.contract import Observation
from teachers.networks.shapes import Augmentation, EncoderShape

MAX_DEVIATIONS = 3.0
"""Point jitter is clamped at this many standard deviations."""

NO_AUGMENTATION = Augmentation(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class AugmentationDraws:
    """Random numbers of each row; uniform ones lie in [0, 1).

    keep_BM: uniform, one for each of M sources; spare_B: uniform, the source to keep where all would be dropped; view_BV6:
    uniform, for each of V views two for the shift, three for the colours' gains, one for the contrast; jitter_BON3: standard
    normal, for every point.
    """

    keep_BM: Tensor
    spare_B: Tensor
    view_BV6: Tensor
    jitter_BON3: Tensor


def draw_augmentation(seeds_B: Tensor, num_sources: int, num_views: int, cloud: Sequence[int]) -> AugmentationDraws:
    """The random numbers of seeds `[B]` (int64), always drawn on the CPU. cloud: (O, N), with N = 0 for no points."""
    generator, rows = torch.Generator(), []
    for seed in seeds_B.tolist():
        generator.manual_seed(seed)
        uniform = torch.rand(1 + num_sources + 6 * num_views, generator=generator)
        rows.append((uniform, torch.randn(*cloud, 3, generator=generator)))
    uniform_BU = torch.stack([uniform for uniform, _ in rows]).to(seeds_B.device)
    return AugmentationDraws(
        keep_BM=uniform_BU[:, 1 : 1 + num_sources],
        spare_B=uniform_BU[:, 0],
        view_BV6=uniform_BU[:, 1 + num_sources :].unflatten(1, (num_views, 6)),
        jitter_BON3=torch.stack([jitter for _, jitter in rows]).to(seeds_B.device),
    )


def kept_sources(draws: AugmentationDraws, dropout: float) -> Tensor:
    """Which sources are kept, `[B, M]` bool: each is dropped with probability `dropout`, but never all."""
    kept_BM = draws.keep_BM >= dropout
    sources = kept_BM.shape[1]
    spare_BM = torch.arange(sources, device=kept_BM.device) == (draws.spare_B * sources).long()[:, None]
    return kept_BM | (spare_BM & ~kept_BM.any(1, keepdim=True))


def shift_images(images_BOCHW: Tensor, uniform_B2: Tensor, max_px: int) -> Tensor:
    """Images shifted by -max_px .. max_px whole pixels down and right, the edge repeated; all O steps of a row alike."""
    offset_B2 = (uniform_B2 * (2 * max_px + 1)).long() - max_px
    for axis, offset_B in ((3, offset_B2[:, 0]), (4, offset_B2[:, 1])):
        size = images_BOCHW.shape[axis]
        taken_BH = (torch.arange(size, device=offset_B.device) - offset_B[:, None]).clamp(0, size - 1)
        index = taken_BH[:, None, None, :, None] if axis == 3 else taken_BH[:, None, None, None]
        images_BOCHW = images_BOCHW.gather(axis, index.expand_as(images_BOCHW))
    return images_BOCHW


def jitter_colours(colours: Tensor, uniform_B4: Tensor, strength: float, axis: int) -> Tensor:
    """Colours 0 .. 1 `[B, ...]`, RGB along `axis`, with random gains and contrast; all O steps of a row alike."""
    change_B4 = 1 + strength * (2 * uniform_B4 - 1)
    gain, contrast = ([len(colours), *[1] * (colours.ndim - 1)] for _ in range(2))
    gain[axis] = 3
    colours = colours * change_B4[:, :3].view(gain)
    mean = colours.mean(tuple(range(1, colours.ndim)), keepdim=True)
    return (mean + change_B4[:, 3].view(contrast) * (colours - mean)).clamp(0, 1)


def jitter_points(points_BONX: Tensor, normal_BON3: Tensor, deviation_m: float) -> Tensor:
    """Points `[B, O, N, 3+C]` with normal noise of this deviation [m], clamped at `MAX_DEVIATIONS`, on their positions."""
    noise_BON3 = deviation_m * normal_BON3[:, :, : points_BONX.shape[2]].clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
    return torch.cat([points_BONX[..., :3] + noise_BON3, points_BONX[..., 3:]], dim=-1)


def augment(observation: Observation, shape: EncoderShape, seeds_B: Tensor) -> tuple[Observation, Tensor | None]:
    """The augmented observation, and which of its M sources, in their order, each row keeps, `[B, M]` bool; None: all.

    observation: the encoded sources in raw units, not modified; seeds_B: int64, one per row.
    """
    settings, out = shape.augmentation, dict(observation)
    jittered = POINTS in observation and settings.point_jitter_m
    cloud = (*observation[POINTS].shape[1:2], shape.num_points) if jittered else (0, 0)
    # the last view is the cloud, which has its own colours
    draws = draw_augmentation(seeds_B, len(observation), len(shape.views) + 1, cloud)
    for name, value in observation.items():
        if name == POINTS:
            if settings.point_jitter_m:
                value = jitter_points(value, draws.jitter_BON3, settings.point_jitter_m)
            if settings.colour and shape.point_colours:
                colours = jitter_colours(value[..., 3:], draws.view_BV6[:, -1, 2:], settings.colour, axis=-1)
                value = torch.cat([value[..., :3], colours], dim=-1)
        elif name.startswith((IMAGES, DEPTH)):
            view = shape.views.index(name.removeprefix(IMAGES + ".").removeprefix(DEPTH + "."))
            if settings.shift_px:
                value = shift_images(value, draws.view_BV6[:, view, :2], settings.shift_px)
            if settings.colour and name.startswith(IMAGES):
                value = jitter_colours(value, draws.view_BV6[:, view, 2:], settings.colour, axis=2)
        out[name] = value
    return out, kept_sources(draws, settings.dropout) if settings.dropout and len(observation) > 1 else None
