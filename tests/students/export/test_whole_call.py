"""The exported whole call: its candidates and its selection are PyTorch's, with and without a last plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from students.export.parity import measure_parity, random_observation
from students.export.whole_call import WholeCall
from students.selection import KINDS, Selection, first_inlier, nearest_to_remainder


@pytest.mark.parametrize("kind", KINDS)
def test_it_returns_what_the_selection_chooses_among_its_candidates(kind: str, make_student, tmp_path: Path) -> None:
    student = make_student(codes=8, latent_size=2, shares=True).eval()
    call = WholeCall(student, Selection(kind, 6), 4, tmp_path / "call.onnx")
    weights_A, shape, chosen = torch.tensor(student.shape.action_weights), student.shape, set()
    assert call.samples == (6 if kind in ("outlier_rejection", "temporal_consistency") else 1)
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        observation = random_observation(student, 1, generator)
        inputs = [*observation.values(), torch.randn(1, call.samples, 2, generator=generator)]
        if seed % 2:  # the first candidate has a code of its own: it is an outlier
            inputs[-1][0, :, 0] = torch.tensor([-2.0, 0.3, 0.3, 0.3, 0.3, 0.3])[: call.samples]
        expected = 0
        with torch.no_grad():
            candidates_1NTA = student(observation, inputs[-1], normalised=True)
            if kind == "outlier_rejection":
                expected = int(first_inlier(candidates_1NTA, 4, weights_A))
            elif kind == "temporal_consistency":
                last_1TA = torch.randn(1, shape.horizon, shape.action_size, generator=generator)
                there = float(seed % 3 > 0)
                inputs += [last_1TA, torch.tensor([there])]
                expected = int(nearest_to_remainder(candidates_1NTA, last_1TA, 4, weights_A)) if there else 0
        chunk_1TA, ours_1NTA, index_1 = call(*inputs)
        torch.testing.assert_close(ours_1NTA, candidates_1NTA, rtol=1e-4, atol=1e-4)
        assert int(index_1) == expected
        raw_1TA = student.normaliser.unnormalise_action(candidates_1NTA[:, expected])
        np.testing.assert_allclose(chunk_1TA, raw_1TA, atol=3e-5)
        chosen.add(expected)
    assert len(chosen) > 1 or call.samples == 1


@pytest.mark.parametrize("kind", ["outlier_rejection", "temporal_consistency"])
def test_its_parity_is_that_of_any_number_of_samples(kind: str, make_student, tmp_path: Path) -> None:
    student = make_student(codes=8, latent_size=2, shares=True).eval()
    call = WholeCall(student, Selection(kind, 6), 4, tmp_path / "call.onnx")
    alike = measure_parity(student, {"call": call.candidates()}, inputs=150)["call"]
    assert alike.holds and alike.chunks + alike.on_border == 50 * (16 + 1 + 5)
    observations = random_observation(student, 40, torch.Generator().manual_seed(0))
    assert call.other_choices(observations) == 0
    call.module.index = lambda candidates_BNTA, *last: torch.tensor([3])  # type: ignore[method-assign]
    assert call.other_choices(observations) > 20
