"""The check of exported graphs finds what differs, and tries all that a student may see."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from envs.specs import DEPTH, STATE
from students.export.parity import measure_parity, random_observation
from students.one_step import OneStepStudent
from teachers.networks.shapes import PolicyShape

Make = Callable[..., OneStepStudent]


def test_the_check_says_how_far_a_graph_is_off_and_refuses_it(make_student: Make) -> None:
    student = make_student()  # both half ranges of its actions are 0.3
    offset = torch.tensor([0.0, 9e-5])
    found = measure_parity(student, {
        "same": student, "near": lambda seen, latents: student(seen, latents) + offset / 10,
        "far": lambda seen, latents: student(seen, latents) - offset,
        "broken": lambda seen, latents: student(seen, latents) * torch.nan,
        "more": lambda seen, latents: student(seen, latents).repeat(1, 2, 1, 1),
    }, inputs=50)  # fmt: skip
    assert found["same"].largest < 1e-6 and found["same"].holds and found["near"].holds
    assert found["far"].largest == pytest.approx(9e-5, rel=0.02)
    assert found["far"].largest_normalised == pytest.approx(3e-4, rel=0.02) and not found["far"].holds
    assert math.isnan(found["broken"].largest) and not found["broken"].holds
    assert found["more"].largest == math.inf and not found["more"].holds


def test_a_latent_on_the_border_of_two_codes_is_left_out_and_counted(
    make_student: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(codes=2, latent_size=1)

    def drawn(count: int, samples: int, size: int, generator: torch.Generator) -> Tensor:
        latents = torch.full((count, samples, size), 0.3)
        latents[0] = 1e-7  # half of the normal distribution lies below 0: the border of two even codes
        return latents

    monkeypatch.setattr("students.export.parity.torch.randn", drawn)
    parity = measure_parity(student, {"same": student}, inputs=2)["same"]
    assert (parity.chunks, parity.on_border) == (16, 16)


def test_random_observations_cover_the_known_ranges(make_student: Make, make_teacher, seeing_shape: PolicyShape) -> None:
    student = make_student(make_teacher(encoder=seeing_shape.encoder))
    seen = random_observation(student, 400, torch.Generator().manual_seed(0))
    # the statistics: centres 0.5 and 0, half ranges 0.25 and 0.3
    ends = seen[STATE].flatten(0, 1).aminmax(dim=0)
    torch.testing.assert_close(ends.min, torch.tensor([0.2, -0.36]), atol=0.01, rtol=0)
    torch.testing.assert_close(ends.max, torch.tensor([0.8, 0.36]), atol=0.01, rtol=0)
    depth = seen[f"{DEPTH}.front"]
    known = depth[~depth.isnan()]
    assert 0.4 <= known.min() < 0.41 and 1.39 < known.max() <= 1.4 and 0.01 < float(depth.isnan().float().mean()) < 0.03
