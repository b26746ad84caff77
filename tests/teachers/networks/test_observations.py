"""What is seen: sizes by hand, made-up observations, and every way in which one that came can be wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from envs.specs import IMAGES, STATE
from teachers.contract import Observation
from teachers.networks.observations import check_observation, check_sources, fake_observation, sources_of
from teachers.networks.shapes import Augmentation, EncoderShape, PolicyShape

FRONT, WRIST, DEEP, CLOUD = (
    "observation.images.front", "observation.images.wrist", "observation.depth.front", "observation.points",
)  # fmt: skip
SIZES = {STATE: (2, 2), FRONT: (2, 3, 16, 24), WRIST: (2, 3, 16, 24), DEEP: (2, 1, 16, 24), CLOUD: (2, 32, 6)}


# -- the description ---------------------------------------------------------------------------------------------------


def test_sources_are_named_as_lerobot_names_them_and_have_one_order(seeing_shape: PolicyShape, small_shape) -> None:
    assert sources_of(seeing_shape) == tuple(SIZES)
    assert sources_of(small_shape) == (STATE,)
    points = EncoderShape(num_points=8)
    assert points.sources == (CLOUD,) and points.point_size == 3 and points.views == ()
    both = EncoderShape(cameras=("b", "a"), depth_cameras=("c", "a"))
    assert both.views == ("b", "a", "c")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "an encoder without sources"),
        ({"cameras": ("a", "b", "a")}, "cameras: got .* expected every name once"),
        ({"cameras": ("a",), "image_size": (12, 64)}, r"image_size: got \(12, 64\), expected .* at least 16"),
        ({"cameras": ("a",), "image_size": (64,)}, "image_size"),
        ({"num_points": -1}, "num_points: got -1"),
        ({"cameras": ("a",), "point_colours": True}, "num_points: got 0 with point_colours=True"),
        ({"num_points": 9, "width": 10, "heads": 4}, "width=10, heads=4"),
        ({"num_points": 9, "queries": 0}, "queries=0"),
        ({"num_points": 9, "channels": 24}, "channels: got 24, expected a multiple of 16"),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderShape(**fields)


def test_a_state_that_the_policy_does_not_have_is_refused_with_the_nearest(small_shape) -> None:
    with pytest.raises(ValueError, match=r"encoder.state_names: got 'tool_x'.*Did you mean 'tool_x_m'"):
        replace(small_shape, encoder=EncoderShape(state_names=("tool_x",)))


def test_a_shape_comes_back_from_json(seeing_shape, small_shape) -> None:
    described = json.loads(json.dumps(seeing_shape.to_json()))
    assert described["encoder"]["augmentation"]["dropout"] == 0.1
    again = PolicyShape(**described)
    assert again == seeing_shape and again.encoder.augmentation == seeing_shape.encoder.augmentation
    assert "encoder" not in small_shape.to_json() and set(small_shape.to_json()) == set(asdict(small_shape)) - {
        "encoder", "frame"
    }


def test_shapes_that_differ_in_augmentation_alone_are_one_shape(seeing_shape) -> None:
    other = replace(seeing_shape, encoder=replace(seeing_shape.encoder, augmentation=Augmentation(dropout=0.5)))
    assert other == seeing_shape and hash(other) == hash(seeing_shape)
    assert replace(seeing_shape, encoder=replace(seeing_shape.encoder, width=32)) != seeing_shape


# -- made up -----------------------------------------------------------------------------------------------------------


def test_a_made_up_observation_is_one(seeing_shape: PolicyShape) -> None:
    made = fake_observation(seeing_shape, 5)
    assert {name: tuple(value.shape) for name, value in made.items()} == {name: (5, *size) for name, size in SIZES.items()}
    rows = check_observation(seeing_shape, made, tuple(made))
    assert torch.equal(rows[IMAGES], torch.stack([made[FRONT], made[WRIST]])) and torch.equal(rows[CLOUD][0], made[CLOUD])
    assert bool(made[DEEP].isnan().any()) and not bool(made[DEEP].isnan().all())
    again, other = fake_observation(seeing_shape, 5), fake_observation(seeing_shape, 5, seed=1)
    assert all(torch.equal(made[name].nan_to_num(), again[name].nan_to_num()) for name in made)
    assert not any(torch.equal(made[name].nan_to_num(), other[name].nan_to_num()) for name in made)


# -- what came ---------------------------------------------------------------------------------------------------------


def test_a_missing_source_is_named_beside_those_that_came(seeing_shape, seen: Observation) -> None:
    del seen[WRIST]
    with pytest.raises(ValueError, match=rf"\['{WRIST}'\] is missing; got \['{DEEP}', '{FRONT}', .*without=\['{WRIST}'\]"):
        check_sources(seeing_shape, seen)
    assert check_sources(seeing_shape, seen, without=(WRIST,)) == (STATE, FRONT, DEEP, CLOUD)


def test_only_what_is_seen_can_be_done_without_and_not_all_of_it(seeing_shape, small_shape, seen: Observation) -> None:
    with pytest.raises(ValueError, match="without: got 'observation.images.frnt'.*Did you mean 'observation.images.front'"):
        check_sources(seeing_shape, seen, without=("observation.images.frnt",))
    for shape in (seeing_shape, small_shape):
        with pytest.raises(ValueError, match="expected at least one source to be left"):
            check_sources(shape, seen, without=sources_of(shape))


def _set(name: str, value: float, index: tuple[int, ...]):
    def spoil(seen: Observation) -> None:
        seen[name][index] = value

    return spoil


def _cut(name: str, *parts: slice):
    def spoil(seen: Observation) -> None:
        seen[name] = seen[name][(slice(None), *parts)]

    return spoil


ALL = slice(None)
WRONG = {
    "NaN in a state": (_set(STATE, torch.nan, (1, 0, 1)), rf"{STATE}: got NaN or infinity in rows \[1\]"),
    "NaN in an image": (_set(WRIST, torch.nan, (2, 1, 0, 3, 4)), rf"{WRIST}: got NaN or infinity in rows \[2\]"),
    "NaN in a cloud": (_set(CLOUD, torch.nan, (0, 1, 30, 2)), rf"{CLOUD}: got NaN.*rows \[0\].*unknown points left out"),
    "infinity in a cloud": (_set(CLOUD, torch.inf, (0, 1, 30, 2)), f"{CLOUD}: got NaN or infinity"),
    "infinite depth": (_set(DEEP, torch.inf, (0, 0, 0, 0, 0)), f"{DEEP}: got depth of 0, below, or infinite"),
    "no depth": (_set(DEEP, 0.0, (0, 0, 0, 0, 0)), f"{DEEP}: got depth of 0"),
    "an image of 255": (_set(FRONT, 255.0, (0, 0, 0, 0, 0)), f"{FRONT}: got colours from .* to 255, .*divide"),
    "an image below 0": (_set(FRONT, -0.5, (0, 0, 0, 0, 0)), f"{FRONT}: got colours from -0.5"),
    "a point of another colour": (_set(CLOUD, 7.0, (0, 0, 0, 4)), f"{CLOUD}: got colours from .* to 7,"),
    "bytes": (lambda seen: seen.update({FRONT: (255 * seen[FRONT]).byte()}), rf"{FRONT}: got torch.uint8, expected floats"),
    "a small image": (_cut(FRONT, ALL, ALL, slice(15)), rf"{FRONT}: got \(3, 2, 3, 15, 24\), expected \(B, 2, 3, 16, 24\)"),
    "a grey image": (_cut(FRONT, ALL, slice(1)), rf"{FRONT}: got \(3, 2, 1, 16, 24\)"),
    "one step": (_cut(DEEP, slice(1)), rf"{DEEP}: got \(3, 1, 1, 16, 24\), expected \(B, 2, 1, 16, 24\)"),
    "no colours": (_cut(CLOUD, ALL, ALL, slice(3)), rf"{CLOUD}: got \(3, 2, 32, 3\), expected \(B, 2, 32, 6\)"),
    "too few points": (_cut(CLOUD, ALL, slice(7)), r"got \(3, 2, 7, 6\), expected \(B, 2, 32, 6\) with at least 8 points"),
    "too many points": (lambda seen: seen.update({CLOUD: seen[CLOUD].repeat(1, 1, 2, 1)}), r"got \(3, 2, 64, 6\)"),
    "a whole state too few": (_cut(STATE, ALL, slice(1)), rf"{STATE}: got \(3, 2, 1\), expected \(B, 2, 2\)"),
    "nothing": (lambda seen: seen.update({name: value[:0] for name, value in seen.items()}), "batch: got .*: 0.*at least one"),
    "other batches": (lambda seen: seen.update({FRONT: seen[FRONT][:2]}), f"batch: got .*'{FRONT}': 2"),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_said_and_it_alone(seeing_shape, seen: Observation, how: str) -> None:
    spoil, message = WRONG[how]
    spoil(seen)
    with pytest.raises(ValueError, match=message) as caught:
        check_observation(seeing_shape, seen, sources_of(seeing_shape))
    assert len(str(caught.value).splitlines()) == 2, caught.value


def test_all_that_is_wrong_is_said_at_once(seeing_shape, seen: Observation) -> None:
    for spoil in ("NaN in a cloud", "infinite depth", "an image of 255"):
        WRONG[spoil][0](seen)
    with pytest.raises(ValueError) as caught:
        check_observation(seeing_shape, seen, sources_of(seeing_shape))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [FRONT, DEEP, CLOUD]


def test_depth_that_is_unknown_and_a_quarter_of_the_points_will_do(seeing_shape, seen: Observation) -> None:
    seen[DEEP][:] = torch.nan
    seen[CLOUD] = seen[CLOUD][:, :, :8]
    check_observation(seeing_shape, seen, sources_of(seeing_shape))


def test_what_is_not_seen_is_not_looked_at(seeing_shape, seen: Observation) -> None:
    seen[FRONT][:] = torch.nan
    seen[STATE][..., 0] = torch.nan  # tool_x_m: where an object is may be unknown outside of a simulator
    check_observation(seeing_shape, seen, (STATE, CLOUD))
