"""The networks: time order kept through the patches, attention by hand, rows apart, sizes checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import FEW, Block, StateEncoder, TimeEmbedding, TrajectoryTransformer, attend


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- patches -------------------------------------------------------------------------------------------------------


def test_identity_weights_give_the_chunk_back_in_its_order(small_shape: PolicyShape) -> None:
    # width = patch * A = 8, so that the two linear maps can be identities; no block, no position, no norm
    trunk = TrajectoryTransformer(replace(small_shape, width=8, depth=0))
    trunk.norm = nn.Identity()
    with torch.no_grad():
        for linear in (trunk.to_tokens, trunk.from_tokens):
            linear.weight.copy_(torch.eye(8))
            linear.bias.zero_()
        trunk.position.zero_()
    chunk = torch.arange(32.0).view(2, 8, 2)
    assert torch.equal(trunk(chunk, torch.zeros(2, 8)), chunk)


def test_a_token_is_a_run_of_patch_actions(small_shape: PolicyShape) -> None:
    # fresh blocks pass their input through, so no token can see another: output patch i depends on input patch i alone
    trunk = TrajectoryTransformer(small_shape)
    jacobian = torch.autograd.functional.jacobian(lambda chunk: trunk(chunk, torch.zeros(1, 16)), torch.zeros(1, 8, 2))
    depends = jacobian.abs().sum((0, 2, 3, 5)) > 0  # [T of the output, T of the input]
    same_patch = torch.arange(8)[:, None] // 4 == torch.arange(8)[None] // 4
    assert torch.equal(depends, same_patch)


def test_trained_blocks_let_every_action_see_every_other(make_teacher) -> None:
    trunk = make_teacher().trunk
    jacobian = torch.autograd.functional.jacobian(lambda chunk: trunk(chunk, torch.ones(1, 16)), torch.zeros(1, 8, 2))
    assert bool((jacobian.abs().sum((0, 2, 3, 5)) > 0).all())


def test_the_position_of_a_patch_matters(make_teacher) -> None:
    trunk, chunk, condition = make_teacher().trunk, _randn(1, 8, 2), torch.ones(1, 16)
    swapped = torch.cat([chunk[:, 4:], chunk[:, :4]], dim=1)
    out = trunk(chunk, condition)
    assert not torch.allclose(torch.cat([out[:, 4:], out[:, :4]], dim=1), trunk(swapped, condition), atol=1e-3)


def test_a_row_sees_its_own_chunk_and_condition_only(make_teacher) -> None:
    trunk, chunks, conditions = make_teacher().trunk, _randn(4, 8, 2), _randn(4, 16, seed=1)
    together = trunk(chunks, conditions)
    for row in range(4):
        alone = trunk(chunks[row : row + 1], conditions[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, trunk(chunks, conditions.flip(0)), atol=1e-3)


# -- a block -------------------------------------------------------------------------------------------------------


def test_a_fresh_block_changes_nothing() -> None:
    tokens = _randn(2, 3, 8)
    assert torch.equal(Block(8, 2)(tokens, _randn(2, 8, seed=1), 3), tokens)


def test_a_block_against_loops() -> None:
    width, heads, length = 8, 2, 3
    block = Block(width, heads)
    for index, value in enumerate(block.parameters()):
        value.data = 0.4 * _randn(*value.shape, seed=index)
    tokens, condition = _randn(1, 2 * length, width, seed=90), _randn(1, width, seed=91)  # two chunks of one observation

    def norm(row: torch.Tensor) -> torch.Tensor:
        return (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()

    scale_a, shift_a, gate_a, scale_f, shift_f, gate_f = block.modulation(condition)[0].chunk(6)
    qkv = [block.to_qkv(norm(row) * (1 + scale_a) + shift_a) for row in tokens[0]]
    expected = []
    for here in range(2 * length):
        heard, chunk = [], range(here // length * length, (here // length + 1) * length)
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = torch.stack([qkv[here][:width][part] @ qkv[j][width : 2 * width][part] for j in chunk])
            weights = (scores / (width // heads) ** 0.5).softmax(0)
            heard.append(sum(weight * qkv[j][2 * width :][part] for weight, j in zip(weights, chunk, strict=True)))
        row = tokens[0, here] + gate_a * block.from_attention(torch.cat(heard))
        expected.append(row + gate_f * block.feedforward(norm(row) * (1 + scale_f) + shift_f))
    torch.testing.assert_close(block(tokens, condition, length)[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


# -- encoder and time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("chunks", [1, FEW, 20])
def test_attention_is_the_softmax_of_scaled_products(length: int, chunks: int) -> None:
    qkv = torch.randn(chunks, length, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    query, key, value = qkv.unbind(2)
    share_NHLL = (torch.einsum("nihd,njhd->nhij", query, key) / 5**0.5).softmax(-1)
    torch.testing.assert_close(attend(qkv), torch.einsum("nhij,njhd->nihd", share_NHLL, value))


def test_attention_of_two_tokens_can_be_differentiated_twice() -> None:
    qkv = torch.randn(FEW, 2, 3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, qkv) and torch.autograd.gradgradcheck(attend, qkv)


def test_the_encoder_tells_the_present_from_the_past() -> None:
    encoder, states = StateEncoder(2, 3, 8), _randn(4, 2, 3)
    assert encoder(states).shape == (4, 8)
    assert not torch.allclose(encoder(states), encoder(states.flip(1)), atol=1e-3)


def test_the_time_embedding_is_built_from_sines_and_cosines_of_rising_frequency() -> None:
    time = TimeEmbedding(6)
    assert time.frequencies.tolist() == pytest.approx([1.0, 1000**0.5, 1000.0], rel=1e-4)
    time.layers = nn.Sequential()  # what goes into the perceptron
    got = time(torch.tensor([0.0, 0.5]))
    assert got[0].tolist() == pytest.approx([0, 0, 0, 1, 1, 1])
    assert float(got[1, 0]) == pytest.approx(0.479426, abs=1e-5) and float(got[1, 3]) == pytest.approx(
        0.877583, abs=1e-5
    )


# -- shape ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 10}, "horizon 10 is not a multiple of patch 4"),
        ({"width": 18, "heads": 4}, "width must be even and a multiple of heads, got width=18, heads=4"),
        ({"width": 9, "heads": 3}, "width must be even"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(small_shape: PolicyShape, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(small_shape, **changes)


def test_lists_as_json_gives_them_become_tuples(small_shape: PolicyShape) -> None:
    listed = replace(small_shape, state_names=["a", "b", "c"], action_weights=[1.0, 2.0])  # type: ignore[arg-type]
    assert listed.state_names == ("a", "b", "c") and listed.action_weights == (1.0, 2.0)
    assert (listed.state_size, listed.action_size) == (3, 2)
