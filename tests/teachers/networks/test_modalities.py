"""The modality encoders: positions of keypoints, points in any order and number, independent rows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from teachers.networks.modalities import KEYPOINTS, Patches, PointEncoder, ViewEncoder, ViewPair


def _rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -- images ------------------------------------------------------------------------------------------------------------


class _Given(nn.Module):
    """Layers that give one and the same feature map."""

    def __init__(self, map_RDHW: torch.Tensor) -> None:
        super().__init__()
        self.map_RDHW = map_RDHW

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.map_RDHW


def test_a_view_is_read_out_at_the_spots_that_its_heat_names() -> None:
    view = ViewEncoder(3, 16)  # 32 channels, two for each of the 16 spots
    map_RDHW = _rand(1, 32, 3, 5)
    view.layers = _Given(map_RDHW)
    with torch.no_grad():
        view.heat.weight.zero_()
        view.heat.weight[4, 9] = 1.0  # spot 4 looks where channel 9 is largest, the others everywhere alike
        view.sharpness_P1[4] = 1e5
    out = view(torch.zeros(1, 3, 24, 40))[0]
    place, seen = out[: 2 * KEYPOINTS].view(KEYPOINTS, 2), out[2 * KEYPOINTS :].view(KEYPOINTS, 2)
    row, column = divmod(int(map_RDHW[0, 9].argmax()), 5)
    torch.testing.assert_close(place[4], torch.tensor([row - 1.0, column / 2 - 1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[4], map_RDHW[0, 8:10, row, column])
    torch.testing.assert_close(place[0], torch.zeros(2), rtol=0, atol=1e-6)  # the middle
    torch.testing.assert_close(seen[0], map_RDHW[0, :2].mean((1, 2)))


@pytest.mark.parametrize("size", [(16, 16), (84, 84), (33, 70)])
def test_views_of_any_size_give_features_of_one_size_and_rows_do_not_mix(size: tuple[int, int]) -> None:
    view, images = ViewEncoder(2, 16), _rand(3, 2, *size)
    together = view(images)
    assert together.shape == (3, view.size) == (3, 64)
    for row in range(3):
        torch.testing.assert_close(view(images[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (18, 33)])
def test_patches_are_a_convolution_that_does_not_overlap(size: tuple[int, int]) -> None:
    patches, images = Patches(3, 8, 4), _rand(2, 3, *size)
    torch.testing.assert_close(patches(images), F.conv2d(images, patches.weight, stride=4), rtol=1e-5, atol=1e-6)


def test_a_pair_sees_what_its_two_encoders_see_also_after_these_have_changed() -> None:
    torch.manual_seed(0)
    colour, depth = ViewEncoder(3, 16), ViewEncoder(2, 16)
    images, depths = _rand(4, 3, 24, 40), _rand(4, 2, 24, 40, seed=1)

    def check(pair: ViewPair, first: ViewEncoder, second: ViewEncoder) -> None:
        with torch.no_grad():
            both = pair(images, depths)
            assert both.shape == (4, 2, 64)
            torch.testing.assert_close(both[:, 0], first(images), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(both[:, 1], second(depths), rtol=1e-4, atol=1e-5)

    pair = ViewPair(colour, depth)
    check(pair, colour, depth)
    its_pair, its_colour, its_depth = copy.deepcopy((pair, colour, depth))
    with torch.no_grad():
        for value in (*colour.parameters(), *depth.parameters()):
            value.add_(0.1 * torch.randn_like(value))
    check(pair, colour, depth)
    check(its_pair, its_colour, its_depth)  # those of a copy have not changed
    colour.load_state_dict(its_colour.state_dict())
    check(pair, colour, depth)


# -- points ------------------------------------------------------------------------------------------------------------


def test_points_against_loops() -> None:
    cloud, points = PointEncoder(6), _rand(1, 4, 6) * 2 - 1
    rows = []
    for x, y, z, *colour in points[0].tolist():
        angles = [math.pi * 2**octave * value for value in (x, y, z) for octave in range(4)]
        waves = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        rows.append(cloud.layers(torch.tensor([x, y, z, *colour, *waves])))
    torch.testing.assert_close(cloud(points)[0], torch.stack(rows).amax(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_the_points_and_repeated_ones_do_not_matter(training: bool) -> None:
    cloud, points = PointEncoder(3).train(training), _rand(2, 50, 3)
    out = cloud(points)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cloud(points[:, order]), out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cloud(torch.cat([points, points[:, :9]], dim=1)), out, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cloud(points[:, 10:]), out, atol=1e-3)


def test_the_short_way_of_training_has_the_value_and_the_gradient_of_the_maximum() -> None:
    cloud, points, weight = PointEncoder(3), _rand(3, 20, 3), _rand(3, 128, seed=1)
    short = cloud(points)
    (short * weight).sum().backward()
    mine = [value.grad.clone() for value in cloud.parameters()]
    cloud.zero_grad()
    whole = cloud.eval()(points)
    torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-6)
    (whole * weight).sum().backward()
    for value, gradient in zip(cloud.parameters(), mine, strict=True):
        torch.testing.assert_close(gradient, value.grad, rtol=1e-3, atol=1e-4)
