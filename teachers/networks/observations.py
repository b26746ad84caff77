"""Observations of a policy: its sources and their shapes, fake observations for tests, and the check of given ones."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from envs.specs import DEPTH, IMAGES, POINTS, STATE, nearest_name
from teachers.contract import Observation
from teachers.networks.modalities import modality_of
from teachers.networks.shapes import PolicyShape

SPARSE = 4
"""A cloud may have fewer points than N, because the encoder takes a maximum over them. Fewer than N / SPARSE are refused: most
of the scene would be missing."""


def sources_of(shape: PolicyShape) -> tuple[str, ...]:
    """The features of an observation that a policy of this shape uses."""
    return (STATE,) if shape.encoder is None else shape.encoder.sources


def feature_shape(shape: PolicyShape, name: str) -> tuple[int, ...]:
    """The shape of a feature without B: (O, S), (O, 3, H, W), (O, 1, H, W), (O, N, 3 + C), or (O, D) of a further modality."""
    if name == STATE:
        return shape.observation_steps, shape.state_size
    assert shape.encoder is not None
    if name == POINTS:
        return shape.observation_steps, shape.encoder.num_points, shape.encoder.point_size
    if name in dict(shape.encoder.vectors):
        return shape.observation_steps, dict(shape.encoder.vectors)[name]
    return shape.observation_steps, 3 if name.startswith(IMAGES) else 1, *shape.encoder.image_size


def visible_state_indices(shape: PolicyShape) -> list[int]:
    """Indices of the state dimensions that a policy of this shape uses."""
    names = shape.state_names if shape.encoder is None else shape.encoder.state_names
    return [shape.state_names.index(name) for name in names]


def select_state(shape: PolicyShape, state: Tensor) -> Tensor:
    """The dimensions `[.., S']` of a state `[.., S]` that a policy of this shape uses."""
    indices = visible_state_indices(shape)
    if indices == list(range(indices[0], indices[0] + len(indices))):
        return state[..., indices[0] : indices[0] + len(indices)]  # a list of indices would be converted to a tensor first
    return state[..., indices]


def group_by_kind(observation: Observation, sources: Collection[str]) -> Observation:
    """The sources of each kind (state, images, depth, points) stacked in their order, `[V, B, O, ..]`, by the kind's name.

    At batch 1 the number of operations counts, so all later work is done once per kind.
    """
    kinds = (STATE, IMAGES, DEPTH, POINTS, *(name for name in sources if modality_of(name)))
    names = {kind: [name for name in sources if name.startswith(kind)] for kind in kinds}
    return {
        kind: observation[each[0]][None] if len(each) == 1 else torch.stack([observation[name] for name in each])
        for kind, each in names.items() if each
    }  # fmt: skip


def fake_observation(shape: PolicyShape, batch: int = 2, seed: int = 0) -> Observation:
    """A random observation for a policy of this shape, so that tests need no recordings.

    States in -1 .. 1, colours 0 .. 1, depth 0.4 .. 1.4 m with one pixel in fifty unknown, points in a box of 1 m.
    """
    generator = torch.Generator().manual_seed(seed)
    observation: Observation = {}
    for name in sources_of(shape):
        uniform = torch.rand(batch, *feature_shape(shape, name), generator=generator)
        if name == STATE:
            uniform = 2 * uniform - 1
        elif name.startswith(DEPTH):
            unknown = torch.rand(uniform.shape, generator=generator) < 0.02
            uniform = torch.where(unknown, torch.nan, 0.4 + uniform)
        elif name == POINTS:
            uniform[..., 1] -= 0.5
        observation[name] = uniform
    return observation


# -- checks ------------------------------------------------------------------------------------------------------------


def check_sources(shape: PolicyShape, observation: Observation, without: Collection[str] = ()) -> tuple[str, ...]:
    """The sources to encode: all of this shape but those in `without`.

    Raises ValueError for a missing source (with those present), an unknown name in `without`, and for omitting all.
    """
    known = sources_of(shape)
    for name in without:
        if name not in known:
            raise ValueError(f"without: got {name!r}, expected some of {list(known)}{nearest_name(name, known)}")
    wanted = tuple(name for name in known if name not in without)
    if not wanted:
        raise ValueError(f"without: got all of {list(known)}, expected at least one source to be left")
    missing = [name for name in wanted if name not in observation]
    if missing:
        raise ValueError(
            f"observation: {missing} is missing; got {sorted(observation)}. Give it, or omit it explicitly: "
            f"encode(observation, without={missing})"
        )
    return wanted


def check_observation(shape: PolicyShape, observation: Observation, sources: Collection[str]) -> Observation:
    """The sources as of `group_by_kind`. Raises ValueError with everything that an encoder of this shape cannot accept.

    Checked: shapes and dtypes; NaN or infinity in images, clouds and the used state; colours outside 0 .. 1; depth that is 0,
    negative or infinite. NaN in depth is valid: the pixel is unknown. A cloud may have fewer points than N, see `SPARSE`.
    """
    wrong: list[str] = []
    batches = {}
    for name in sources:
        got, expected = observation[name], feature_shape(shape, name)
        batches[name] = len(got)
        if not got.is_floating_point():
            wrong.append(f"{name}: got {got.dtype}, expected floats; 8-bit images are divided by 255 first")
        if not _fits(got, expected, cloud=name == POINTS):
            least = f" with at least {least_points(expected[1])} points" if name == POINTS else ""
            wrong.append(f"{name}: got {tuple(got.shape)}, expected (B, {', '.join(map(str, expected))}){least}; "
                         "make the observation as the policy was trained, or train one for this")  # fmt: skip
    if len(set(batches.values())) > 1 or 0 in batches.values():
        wrong.append(f"batch: got {batches} observations, expected at least one, and as many of every source")
    if not wrong:
        rows = group_by_kind(observation, sources)
        if not _faults(shape, rows):  # whether anything is wrong is found faster than where
            return rows
        wrong = _faults(shape, {name: observation[name] for name in sources})
    raise ValueError("this observation cannot be encoded:\n  " + "\n  ".join(wrong))


def least_points(num_points: int) -> int:
    """The fewest points that a cloud of nominally `num_points` may have."""
    return max(1, num_points // SPARSE)


def _fits(got: Tensor, expected: tuple[int, ...], cloud: bool) -> bool:
    shape = tuple(got.shape[1:])
    if cloud and len(shape) == 3 and least_points(expected[1]) <= shape[1] < expected[1]:
        shape = shape[0], expected[1], shape[2]
    return shape == expected


def _faults(shape: PolicyShape, values: Observation) -> list[str]:
    """Errors in the values of sources, single or grouped by kind."""
    used = {name: select_state(shape, value) if name == STATE else value for name, value in values.items()}
    ends = {name: _extremes(name, value) for name, value in used.items()}
    # one transfer from the device for all
    found = iter(torch.stack([end.float() for each in ends.values() for end in each]).tolist())
    faults = [_fault(name, value, [next(found) for _ in ends[name]]) for name, value in used.items()]
    return [fault for fault in faults if fault]


def _extremes(name: str, value: Tensor) -> tuple[Tensor, ...]:
    """Minimum and maximum, of a cloud with colours also the colours'; NaN where the values have one, except in depth."""
    if name.startswith(DEPTH):
        value = value.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf)
    colours = value[..., 3:].aminmax() if name == POINTS and value.shape[-1] > 3 else ()
    return *value.aminmax(), *colours


def _fault(name: str, value: Tensor, ends: list[float]) -> str:
    """The error in a source with these `_extremes`; "" for none."""
    low, high = ends[:2]
    if name.startswith(DEPTH):
        wrong = not 0 < low <= high < math.inf
        return f"{name}: got depth of 0, below, or infinite; expected metres, NaN where it is unknown" if wrong else ""
    if not math.isfinite(high - low):
        rows = (~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        hint = ", and unknown points left out" if name == POINTS else ""
        return f"{name}: got NaN or infinity in rows {rows}; expected finite numbers{hint}"
    low, high = ends[-2:]
    if (name.startswith(IMAGES) or len(ends) == 4) and not -1e-3 <= low <= high <= 1 + 1e-3:
        return f"{name}: got colours from {low:.3g} to {high:.3g}, expected 0 to 1; divide 8-bit ones by 255"
    return ""
