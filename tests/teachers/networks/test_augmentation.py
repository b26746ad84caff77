"""Augmentation: each change by hand, rows by their own seeds, never all sources left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from teachers.networks.augmentation import (
    MAX_DEVIATIONS,
    NO_AUGMENTATION,
    augment,
    draw_augmentation,
    jitter_colours,
    jitter_points,
    kept_sources,
    shift_images,
)
from teachers.networks.observations import sources_of
from teachers.networks.shapes import Augmentation, EncoderShape

SEEDS = torch.tensor([3, 1000, 2**31 - 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shift_px": -1}, "shift_px and point_jitter_m: got -1"),
        ({"point_jitter_m": -0.1}, "got 2 and -0.1"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected at least 0"),
        ({"colour": -0.1}, "colour: got -0.1"),
    ],
)
def test_impossible_strengths_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_only_zeros_are_no_augmentation() -> None:
    assert not NO_AUGMENTATION.any
    assert all(replace(NO_AUGMENTATION, **{name: 1e-3 if name != "shift_px" else 1}).any for name in vars(NO_AUGMENTATION))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_a_rows_draws_depend_on_its_seed_alone_and_on_no_random_state() -> None:
    torch.manual_seed(0)
    together = draw_augmentation(SEEDS, 4, 3, (2, 5))
    shapes = [(3, 4), (3,), (3, 3, 6), (3, 2, 5, 3)]
    assert [tuple(value.shape) for value in vars(together).values()] == shapes
    before = torch.get_rng_state()
    for row in range(3):
        alone = draw_augmentation(SEEDS[row : row + 1], 4, 3, (2, 5))
        for name, value in vars(together).items():
            assert torch.equal(value[row], getattr(alone, name)[0]), name
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(together.view_BV6[0], together.view_BV6[1])


def test_each_source_is_left_out_as_often_as_asked_and_all_never() -> None:
    draws = draw_augmentation(torch.arange(6000), 3, 0, (0, 0))
    kept_BM = kept_sources(draws, 0.4)
    assert bool(kept_BM.any(1).all())
    # left out: 0.4, less the rows in which all would be, of which one in three is kept: 0.4 - 0.4^3 / 3
    torch.testing.assert_close((~kept_BM).float().mean(0), torch.full((3,), 0.4 - 0.064 / 3), rtol=0, atol=0.025)
    alone = kept_BM[(draws.keep_BM < 0.4).all(1)]
    assert bool((alone.sum(1) == 1).all())  # and who stays alone is anyone
    torch.testing.assert_close(alone.float().mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.09)
    assert bool(kept_sources(draw_augmentation(torch.arange(500), 2, 0, (0, 0)), 0.999).any(1).all())
    assert bool(kept_sources(draws, 0.0).all())


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_shift_by_hand() -> None:
    image = torch.arange(6.0).view(1, 1, 1, 2, 3)
    # at most 1 px: uniform numbers below 1/3 stand for -1, above 2/3 for +1
    down_right = shift_images(image, torch.tensor([[0.9, 0.9]]), 1)
    assert down_right[0, 0, 0].tolist() == [[0, 0, 1], [0, 0, 1]]
    left = shift_images(image, torch.tensor([[0.5, 0.1]]), 1)
    assert left[0, 0, 0].tolist() == [[1, 2, 2], [4, 5, 5]]
    assert torch.equal(shift_images(image, torch.tensor([[0.5, 0.4]]), 1), image)


def test_a_shift_is_one_for_all_steps_and_channels_of_a_row_and_keeps_nan() -> None:
    images = torch.rand(1, 1, 1, 7, 9).expand(2, 3, 2, 7, 9).clone()
    images[..., 3, 4] = torch.nan
    moved = shift_images(images, torch.tensor([[0.0, 0.99], [0.5, 0.5]]), 2)
    assert torch.equal(moved[0].nan_to_num(-1), moved[0, :1, :1].expand(3, 2, 7, 9).nan_to_num(-1))
    assert torch.equal(moved[1].nan_to_num(-1), images[1].nan_to_num(-1))
    assert bool(moved[0, 0, 0, 1, 6].isnan()) and int(moved[0].isnan().sum()) == 6  # two up, two to the right


@pytest.mark.parametrize("axis", [2, -1])
def test_colours_by_hand(axis: int) -> None:
    # gains 1.2, 1, 0.8 and contrast 1.1: 0.5 becomes 0.6, 0.5, 0.4, their mean is 0.5, and 10 % more of what differs
    colours = torch.full((1, 1, 3, 4, 4) if axis == 2 else (1, 1, 7, 3), 0.5)
    changed = jitter_colours(colours, torch.tensor([[1.0, 0.5, 0.0, 0.75]]), 0.2, axis)
    means = changed.movedim(axis, 0).flatten(1).mean(1)
    torch.testing.assert_close(means, torch.tensor([0.61, 0.5, 0.39]), rtol=0, atol=1e-6)
    assert bool(changed.amax() <= 1) and torch.equal(jitter_colours(colours, torch.full((1, 4), 0.5), 0.2, axis), colours)
    assert float(jitter_colours(torch.ones_like(colours), torch.ones(1, 4), 0.5, axis).amax()) == 1.0  # cut


def test_points_move_and_their_colours_do_not() -> None:
    points = torch.rand(2, 3, 10, 6)
    normal = torch.randn(2, 3, 16, 3, generator=torch.Generator().manual_seed(0)) * 2
    moved = jitter_points(points, normal, 0.01)  # drawn for 16 points, 10 came
    assert torch.equal(moved[..., 3:], points[..., 3:])
    noise = 0.01 * normal[:, :, :10].clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
    torch.testing.assert_close(moved[..., :3] - points[..., :3], noise)
    assert float((moved - points)[..., :3].abs().amax()) <= 0.01 * MAX_DEVIATIONS + 1e-6


# -- all together ------------------------------------------------------------------------------------------------------


def test_an_observation_is_changed_row_by_row_and_not_in_place(seeing_shape, seen) -> None:
    shape, before = seeing_shape.encoder, {name: value.clone() for name, value in seen.items()}
    out, kept_BM = augment(seen, shape, SEEDS)
    assert kept_BM.shape == (3, 5) and tuple(out) == sources_of(seeing_shape)
    for name, value in seen.items():
        assert torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1)) and out[name].shape == value.shape
        assert torch.equal(out[name].nan_to_num(-1), value.nan_to_num(-1)) == (name == "observation.state")
    for row in range(3):
        alone, kept_1M = augment({name: value[row : row + 1] for name, value in seen.items()}, shape, SEEDS[row : row + 1])
        assert torch.equal(kept_1M[0], kept_BM[row])
        assert all(torch.equal(alone[name][0].nan_to_num(-1), out[name][row].nan_to_num(-1)) for name in seen)


def test_depth_is_shifted_with_the_colours_of_its_camera_and_other_cameras_by_themselves() -> None:
    shape = EncoderShape(
        cameras=("a", "b"), depth_cameras=("b",), image_size=(16, 16), augmentation=replace(NO_AUGMENTATION, shift_px=4)
    )
    picture = torch.rand(16, 16).clamp(min=0.1)
    seen = {
        "observation.images.a": picture.expand(8, 1, 3, 16, 16), "observation.images.b": picture.expand(8, 1, 3, 16, 16),
        "observation.depth.b": picture.expand(8, 1, 1, 16, 16),
    }  # fmt: skip
    out, kept_BM = augment(seen, shape, torch.arange(8))
    assert kept_BM is None
    assert torch.equal(out["observation.images.b"][:, :, :1], out["observation.depth.b"])
    assert not torch.equal(out["observation.images.a"], out["observation.images.b"])


def test_no_augmentation_changes_nothing_and_a_lone_source_is_never_left_out(seeing_shape, seen) -> None:
    same, kept_BM = augment(seen, replace(seeing_shape.encoder, augmentation=NO_AUGMENTATION), SEEDS)
    assert kept_BM is None and all(same[name] is seen[name] for name in seen)
    points = {"observation.points": seen["observation.points"]}
    assert augment(points, replace(seeing_shape.encoder, augmentation=Augmentation(dropout=0.9)), SEEDS)[1] is None
