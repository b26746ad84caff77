"""What is done to observations in training only: shifts, colours, jittered points, sources left out; each row by its seed.

A row's seed decides all of it, as a hypothesis' seed decides its noise: it depends neither on the batch, nor on the number of
processes, nor on any random state, so nothing has to be kept for a training that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.specs import DEPTH, IMAGES, POINTS
from teachers.contract import Observation
from teachers.networks.shapes import Augmentation, EncoderShape

LIMIT = 3.0
"""Points are moved by at most so many standard deviations."""


NO_AUGMENTATION = Augmentation(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Draws:
    """What was drawn for each row: all uniform numbers lie in [0, 1).

    keep_BM: one for each of M sources; spare_B: which source stays where all would go; view_BV6: for each of V views two
    for the shift, three for the colours' gains, one for the contrast; jitter_BON3: standard normal, for every point.
    """

    keep_BM: Tensor
    spare_B: Tensor
    view_BV6: Tensor
    jitter_BON3: Tensor


def draw(seeds_B: Tensor, num_sources: int, num_views: int, cloud: Sequence[int]) -> Draws:
    """What the seeds `[B]` (int64) stand for, always drawn on the CPU. cloud: (O, N), with N = 0 for no points."""
    generator, rows = torch.Generator(), []
    for seed in seeds_B.tolist():
        generator.manual_seed(seed)
        uniform = torch.rand(1 + num_sources + 6 * num_views, generator=generator)
        rows.append((uniform, torch.randn(*cloud, 3, generator=generator)))
    uniform_BU = torch.stack([uniform for uniform, _ in rows]).to(seeds_B.device)
    return Draws(
        keep_BM=uniform_BU[:, 1 : 1 + num_sources],
        spare_B=uniform_BU[:, 0],
        view_BV6=uniform_BU[:, 1 + num_sources :].unflatten(1, (num_views, 6)),
        jitter_BON3=torch.stack([jitter for _, jitter in rows]).to(seeds_B.device),
    )


def kept(draws: Draws, dropout: float) -> Tensor:
    """Which sources are kept, `[B, M]` bool: each is left out with probability `dropout`, but one always stays."""
    kept_BM = draws.keep_BM >= dropout
    sources = kept_BM.shape[1]
    spare_BM = torch.arange(sources, device=kept_BM.device) == (draws.spare_B * sources).long()[:, None]
    return kept_BM | (spare_BM & ~kept_BM.any(1, keepdim=True))


def shift(images_BOCHW: Tensor, uniform_B2: Tensor, most_px: int) -> Tensor:
    """Images moved by -most_px .. most_px whole pixels, down and right, the edge repeated; a row's steps alike."""
    offset_B2 = (uniform_B2 * (2 * most_px + 1)).long() - most_px
    for axis, offset_B in ((3, offset_B2[:, 0]), (4, offset_B2[:, 1])):
        size = images_BOCHW.shape[axis]
        taken_BH = (torch.arange(size, device=offset_B.device) - offset_B[:, None]).clamp(0, size - 1)
        index = taken_BH[:, None, None, :, None] if axis == 3 else taken_BH[:, None, None, None]
        images_BOCHW = images_BOCHW.gather(axis, index.expand_as(images_BOCHW))
    return images_BOCHW


def recolour(colours: Tensor, uniform_B4: Tensor, strength: float, axis: int) -> Tensor:
    """Colours 0 .. 1 `[B, ...]`, red, green and blue along `axis`, with other gains and contrast; a row's steps alike."""
    change_B4 = 1 + strength * (2 * uniform_B4 - 1)
    gain, contrast = ([len(colours), *[1] * (colours.ndim - 1)] for _ in range(2))
    gain[axis] = 3
    colours = colours * change_B4[:, :3].view(gain)
    mean = colours.mean(tuple(range(1, colours.ndim)), keepdim=True)
    return (mean + change_B4[:, 3].view(contrast) * (colours - mean)).clamp(0, 1)


def jitter(points_BONX: Tensor, normal_BON3: Tensor, deviation_m: float) -> Tensor:
    """Points `[B, O, N, 3+C]` whose positions are moved by normal numbers of this deviation [m], cut at `LIMIT` of them."""
    moved_BON3 = deviation_m * normal_BON3[:, :, : points_BONX.shape[2]].clamp(-LIMIT, LIMIT)
    return torch.cat([points_BONX[..., :3] + moved_BON3, points_BONX[..., 3:]], dim=-1)


def augment(seen: Observation, shape: EncoderShape, seeds_B: Tensor) -> tuple[Observation, Tensor | None]:
    """An observation as training shows it, and which of its M sources, in this order, each row is shown, `[B, M]` bool.

    The second is None where nothing is left out. seen: the sources that are encoded, raw units, unchanged afterwards;
    seeds_B: int64, one a row.
    """
    how, out = shape.augmentation, dict(seen)
    cloud = tuple(seen[POINTS].shape[1:2]) + (shape.num_points,) if POINTS in seen and how.point_jitter_m else (0, 0)
    draws = draw(seeds_B, len(seen), len(shape.views) + 1, cloud)  # the last view is the cloud: it has colours of its own
    for name, value in seen.items():
        if name == POINTS:
            if how.point_jitter_m:
                value = jitter(value, draws.jitter_BON3, how.point_jitter_m)
            if how.colour and shape.point_colours:
                colours = recolour(value[..., 3:], draws.view_BV6[:, -1, 2:], how.colour, axis=-1)
                value = torch.cat([value[..., :3], colours], dim=-1)
        elif name.startswith((IMAGES, DEPTH)):
            view = shape.views.index(name.removeprefix(IMAGES + ".").removeprefix(DEPTH + "."))
            if how.shift_px:
                value = shift(value, draws.view_BV6[:, view, :2], how.shift_px)
            if how.colour and name.startswith(IMAGES):
                value = recolour(value, draws.view_BV6[:, view, 2:], how.colour, axis=2)
        out[name] = value
    return out, kept(draws, how.dropout) if how.dropout and len(seen) > 1 else None
