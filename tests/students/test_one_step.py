"""The one-step student: a warm start is the teacher's own first prediction, latents and codes are apart, one evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
import torch

from envs.specs import STATE
from students.one_step import CODE_GAIN, SHARE_GAIN, OneStepStudent
from teachers.flow import WARM_TIME


def _latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _middles(codes: int) -> torch.Tensor:
    """The latents `[C, 1]` in the middle of each code's share of the normal distribution."""
    return torch.tensor([[NormalDist().inv_cdf((code + 0.5) / codes)] for code in range(codes)])


def _telling(student: OneStepStudent) -> OneStepStudent:
    """Codes that say their own number in every entry of what they lift to."""
    assert student.code_book is not None
    with torch.no_grad():
        student.code_book.copy_(torch.arange(float(student.codes))[:, None].expand_as(student.code_book) / CODE_GAIN)
    return student


# -- the warm start ------------------------------------------------------------------------------------------------


def test_a_warm_student_that_is_given_the_noise_says_what_the_teacher_predicts_at_t_0(
    make_teacher, make_student, observation
) -> None:
    teacher = make_teacher()
    student = make_student(teacher, latent_size=16)  # T * A = 16: a latent can hold a whole noise
    with torch.no_grad():
        student.from_latent.weight.copy_(torch.eye(16))
    noise_BMTA = _latents(3, 4, 8, 2)
    chunks = student(observation, noise_BMTA.flatten(2), normalised=True)
    # at t = 0 the end point is x + v, since v = (x_1 - x) / (1 - 0)
    for m in range(4):
        velocity = teacher.velocity(noise_BMTA[:, m], torch.zeros(3), teacher.encode(observation))
        torch.testing.assert_close(chunks[:, m], noise_BMTA[:, m] + velocity, rtol=1e-5, atol=1e-5)
    # and in raw units it is the teacher at one Euler step
    raw = student(observation, noise_BMTA.flatten(2))
    torch.testing.assert_close(raw, teacher.sample_from_noise(observation, noise_BMTA, 1), rtol=1e-5, atol=1e-5)


def test_a_cold_student_has_the_teachers_shape_and_statistics_but_not_its_weights(make_teacher, make_student) -> None:
    teacher = make_teacher()
    cold = make_student(teacher, warm=False)
    assert cold.shape == teacher.shape
    for name, value in teacher.normaliser.state_dict().items():
        assert torch.equal(cold.normaliser.state_dict()[name], value)
    assert not torch.equal(cold.trunk.to_tokens.weight, teacher.trunk.to_tokens.weight)
    assert not torch.equal(cold.encoder.layers[1].weight, teacher.encoder.layers[1].weight)
    assert not cold.time_C.any()


def test_training_the_student_leaves_the_teacher_alone(make_teacher, make_student, observation) -> None:
    teacher = make_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = make_student(teacher)
    student(observation, _latents(3, 2, 5)).square().sum().backward()
    for value in student.parameters():
        assert value.grad is not None and bool(value.grad.any())
        value.data -= 0.1 * value.grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(value.grad is None for value in teacher.parameters())


def test_a_lifted_latent_is_as_large_as_the_noise_the_trunk_knows(make_teacher, make_student) -> None:
    student = make_student(make_teacher(horizon=64), latent_size=8)
    lifted = student.lift(_latents(1, 4000, 8)).detach()
    assert float(lifted.square().mean()) == pytest.approx(1.0, abs=0.15)  # 128 entries of 8 weights each


# -- latents -------------------------------------------------------------------------------------------------------


def test_every_latent_makes_its_own_chunk(make_student, observation) -> None:
    student, latents = make_student().requires_grad_(False), _latents(3, 4, 5)
    together = student(observation, latents)
    assert together.shape == (3, 4, 8, 2)
    for b in range(3):
        for m in range(4):
            alone = student({STATE: observation[STATE][b : b + 1]}, latents[b : b + 1, m : m + 1])[0, 0]
            torch.testing.assert_close(together[b, m], alone, rtol=1e-5, atol=1e-5)
    assert float((together[:, 0] - together[:, 1]).abs().amax()) > 1e-3


def test_a_chunk_is_one_evaluation_of_the_network(make_student, observation) -> None:
    student, calls = make_student(), []
    student.encoder.register_forward_hook(lambda _, arguments, __: calls.append(("encoder", len(arguments[0]))))
    student.trunk.register_forward_hook(lambda _, arguments, __: calls.append(("trunk", len(arguments[0]))))
    student(observation, _latents(3, 7, 5))
    assert calls == [("encoder", 3), ("trunk", 21)]


def test_raw_and_normalised_chunks_differ_by_the_statistics_only(make_student, observation) -> None:
    student, latents = make_student(), _latents(3, 2, 5)
    raw, normalised = student(observation, latents), student(observation, latents, normalised=True)
    # centres 0.5, -0.1 and half ranges 0.3 of the fixture's statistics
    torch.testing.assert_close(raw, normalised * 0.3 + torch.tensor([0.5, -0.1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (3, 4, 6), (3, 4, 1, 5)])
def test_latents_of_another_shape_are_refused(make_student, observation, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents: got .* expected \(3, M, 5\)"):
        make_student()(observation, torch.zeros(shape))


def test_a_latent_of_no_size_is_refused(make_student) -> None:
    with pytest.raises(ValueError, match="latent_size must be at least 1, got 0"):
        make_student(latent_size=0)


# -- codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [2, 7, 128])
def test_a_code_is_the_share_of_the_normal_distribution_below_the_first_number(small_shape, codes: int) -> None:
    student = _telling(OneStepStudent(small_shape, 1, codes=codes))
    latents = _latents(1, 3000, 1)
    lifted = student.lift(latents).detach()
    assert lifted.shape == (1, 3000, 16)
    below = [codes * NormalDist().cdf(float(value)) for value in latents[0, :, 0]]
    # the closed form, but where rounding decides
    inside = [index for index, value in enumerate(below) if abs(value - round(value)) > 1e-3]
    assert len(inside) > 2900
    assert [round(float(lifted[0, index, 3])) for index in inside] == [math.floor(below[index]) for index in inside]
    torch.testing.assert_close(student.lift(_middles(codes)[None])[0, :, 0], torch.arange(float(codes)))


@pytest.mark.parametrize("codes", [2, 7, 128])
def test_numbers_far_out_take_the_first_and_the_last_code(small_shape, codes: int) -> None:
    student = _telling(OneStepStudent(small_shape, 1, codes=codes))
    far = torch.tensor([-math.inf, -1e30, -40.0, -6.0, 6.0, 40.0, 1e30, math.inf])[None, :, None]
    expected = torch.tensor([0.0] * 4 + [codes - 1.0] * 4)
    torch.testing.assert_close(student.lift(far)[0, :, 0].detach(), expected)


def test_codes_are_drawn_evenly(small_shape) -> None:
    student = _telling(OneStepStudent(small_shape, 1, codes=32))
    counts = student.lift(_latents(1, 32 * 500, 1))[0, :, 0].detach().round().long().bincount(minlength=32)
    # chi squared with 31 degrees of freedom: mean 31, standard deviation sqrt(62)
    assert counts.shape == (32,) and float(((counts - 500.0).square() / 500).sum()) < 31 + 5 * math.sqrt(62)


def test_only_the_codes_that_were_chosen_get_a_gradient(make_student, observation) -> None:
    student = make_student(None, 1, 6)
    assert student.code_book is not None and student.from_latent is None
    student(observation, _middles(6)[[1, 4]].expand(3, 2, 1)).square().sum().backward()
    assert student.code_book.grad is not None
    assert student.code_book.grad.any(1).tolist() == [False, True, False, False, True, False]


def test_with_codes_alone_an_observation_has_as_many_chunks(make_student, observation) -> None:
    student = make_student(None, 1, 4).requires_grad_(False)
    latents = _latents(3, 60, 1)
    chunks, codes = student(observation, latents), student(observation, _middles(4).expand(3, 4, 1))
    far = (chunks[:, :, None] - codes[:, None]).abs().amax((-1, -2))  # [B, latent, code]
    assert float(far.amin(2).max()) < 1e-4 and set(far.argmin(2).flatten().tolist()) == {0, 1, 2, 3}
    apart = (codes[:, :, None] - codes[:, None]).abs().amax((-1, -2)) + torch.eye(4)
    assert float(apart.min()) > 1e-2


def test_the_numbers_after_the_code_are_lifted_linearly(make_student) -> None:
    student, latents = make_student(None, 3, 4).requires_grad_(False), _latents(2, 5, 3)
    assert student.code_book is not None and student.from_latent is not None
    assert student.code_book.shape == (4, 16) and student.from_latent.weight.shape == (16, 2)
    for b in range(2):
        for m in range(5):
            first, *others = latents[b, m].tolist()
            expected = CODE_GAIN * student.code_book[math.floor(4 * NormalDist().cdf(first))]
            for number, column in zip(others, student.from_latent.weight.unbind(1), strict=True):
                expected = expected + number * column
            torch.testing.assert_close(student.lift(latents)[b, m], expected)


def test_a_code_is_as_large_as_the_noise_the_trunk_knows(make_teacher, make_student) -> None:
    lifted = make_student(make_teacher(horizon=64), 1, 128).lift(_middles(128)[None]).detach()
    assert float(lifted.mean()) == pytest.approx(0.0, abs=0.05)  # 128 codes of 128 entries
    assert float(lifted.square().mean()) == pytest.approx(1.0, abs=0.06)


def test_given_chunks_the_codes_begin_halfway_and_say_what_the_teacher_predicts_there(
    make_teacher, make_student, observation
) -> None:
    teacher = make_teacher()
    student = make_student(teacher, 1, 3, warm=False)
    noise_JTA = (CODE_GAIN * student.code_book.detach()).view(3, 8, 2).clone()
    chunks_JTA = _latents(3, 8, 2, seed=7)
    student.warm_start(teacher, chunks_JTA)
    x_JTA = (1 - WARM_TIME) * noise_JTA + WARM_TIME * chunks_JTA
    condition_BC = teacher.encode(observation)
    got = student(observation, _middles(3).expand(3, -1, -1), normalised=True)
    for j in range(3):
        # the end point that the teacher sees from there: x + (1 - t) v
        x_BTA = x_JTA[j].expand(3, -1, -1)
        velocity = teacher.velocity(x_BTA, torch.full((3,), WARM_TIME), condition_BC)
        torch.testing.assert_close(got[:, j], x_BTA + (1 - WARM_TIME) * velocity, rtol=1e-5, atol=1e-5)


def test_a_teacher_that_is_no_flow_lets_the_codes_begin_at_its_noise(make_teacher, make_student) -> None:
    teacher = make_teacher(kind="diffusion")
    given, plain = make_student(teacher, 1, 3, warm=False), make_student(teacher, 1, 3, warm=False)
    plain.load_state_dict(given.state_dict())
    given.warm_start(teacher, _latents(3, 8, 2))
    plain.warm_start(teacher)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in given.state_dict().items())


def test_a_warm_start_with_codes_takes_all_the_teachers_other_weights(make_teacher, make_student, observation) -> None:
    teacher = make_teacher()
    student = make_student(teacher, 1, 4)
    own = {name for name, _ in student.named_parameters() if not name.startswith(("encoder.", "trunk."))}
    assert own == {"time_C", "code_book"}
    for room in ("encoder", "trunk", "normaliser"):
        its = getattr(teacher, room).state_dict()
        assert all(torch.equal(value, its[name]) for name, value in getattr(student, room).state_dict().items())
    # a code that is a noise makes what the teacher predicts from it at t = 0
    noise_MTA = _latents(4, 8, 2)
    assert student.code_book is not None
    with torch.no_grad():
        student.code_book.copy_(noise_MTA.flatten(1) / CODE_GAIN)
    raw = student(observation, _middles(4).expand(3, 4, 1))
    expected = teacher.sample_from_noise(observation, noise_MTA.expand(3, 4, 8, 2), 1)
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("depth", "taken"), [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])])
def test_a_student_of_fewer_blocks_takes_as_many_of_the_teachers(make_teacher, depth: int, taken: list[int]) -> None:
    teacher = make_teacher(depth=4)
    student = OneStepStudent(replace(teacher.shape, depth=depth), 2)
    student.warm_start(teacher)
    its = teacher.trunk.state_dict()
    for name, value in student.trunk.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            block, _, rest = rest.partition(".")
            name = f"blocks.{taken[int(block)]}.{rest}"
        assert torch.equal(value, its[name]), name
    assert torch.equal(student.encoder.layers[1].weight, teacher.encoder.layers[1].weight)


@pytest.mark.parametrize(("codes", "identity"), [(1, False), (-2, False), (4, True)])
def test_codes_that_are_none_are_refused(small_shape, codes: int, identity: bool) -> None:
    with pytest.raises(ValueError, match=rf"codes: got {codes}, expected at least 2, or 0 for none \(with identity: none"):
        OneStepStudent(small_shape, 16, identity, codes)


# -- shares --------------------------------------------------------------------------------------------------------


def _sharing(student: OneStepStudent, *share: float) -> OneStepStudent:
    """These shares of the codes, whatever is observed."""
    assert student.share_head is not None
    with torch.no_grad():
        student.share_head.bias.copy_(torch.tensor(share).log() / SHARE_GAIN)
    return student


def _within(*share: float) -> torch.Tensor:
    """The latents `[1, C, 1]` in the middle of each code's share."""
    up_to = 0.0
    middles = []
    for each in share:
        middles.append([NormalDist().inv_cdf(up_to + each / 2)])
        up_to += each
    return torch.tensor([middles])


def test_codes_are_drawn_as_the_shares_say(small_shape) -> None:
    student = OneStepStudent(small_shape, 1, codes=4, shares=True)
    share_BJ = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.55, 0.05, 0.0, 0.4]])
    codes = student.choose_codes(_latents(2, 20_000, 1), share_BJ.log())
    for b in range(2):
        counts = codes[b].bincount(minlength=4)
        taken = share_BJ[b] > 0
        assert counts.shape == (4,) and not counts[~taken].any()
        # chi squared with at most 3 degrees of freedom: mean 3, standard deviation sqrt(6)
        expected = 20_000 * share_BJ[b, taken]
        assert float(((counts[taken] - expected).square() / expected).sum()) < 3 + 5 * math.sqrt(6)


def test_a_code_begins_where_the_shares_before_it_end(small_shape) -> None:
    student = OneStepStudent(small_shape, 1, codes=5, shares=True)
    # the third and the fifth are never taken
    log_share = torch.tensor([[0.25, 0.25, 0.0, 0.5, 0.0]]).log()
    below = [1e-6, 0.2499, 0.2501, 0.4999, 0.5001, 0.75, 0.999999]
    latents = torch.tensor([[[NormalDist().inv_cdf(value)] for value in below]])
    assert student.choose_codes(latents, log_share).tolist() == [[0, 0, 1, 1, 3, 3, 3]]
    # at the border itself the next one that is taken at all begins
    half = torch.zeros(1, 1, 1)
    assert student.choose_codes(half, log_share).tolist() == [[3]]
    first = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25]]).log()
    assert student.choose_codes(torch.tensor([[[-math.inf], [-40.0], [-6.0]]]), first).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("codes", [2, 7, 128])
def test_numbers_far_out_stay_among_the_codes(small_shape, codes: int) -> None:
    # sums of shares that are rounded end above or below 1, the share below a number may be rounded to 1
    student = OneStepStudent(small_shape, 1, codes=codes, shares=True)
    log_share_BJ = _latents(50, codes).log_softmax(-1)
    far = torch.tensor([-math.inf, -6.0, 5.0, 5.3, 6.0, 40.0, math.inf])[:, None].expand(50, -1, 1)
    chosen = student.choose_codes(far, log_share_BJ)
    assert chosen.unique(dim=0).tolist() == [[0, 0, *[codes - 1] * 5]]


@pytest.mark.parametrize("codes", [2, 7, 128])
def test_shares_begin_even_and_choose_as_a_student_without_them_does(make_student, observation, codes: int) -> None:
    plain, sharing = (make_student(None, 1, codes, shares=shares).requires_grad_(False) for shares in (False, True))
    log_share_BJ = sharing.log_shares(sharing.encode(observation))
    assert plain.log_shares(plain.encode(observation)) is None
    torch.testing.assert_close(log_share_BJ.exp(), torch.full((3, codes), 1 / codes))
    latents = _latents(3, 20_000, 1)
    below = codes * 0.5 * (1 + torch.erf(latents[..., 0] / math.sqrt(2)))
    inside = (below - below.round()).abs() > 1e-3  # not where rounding decides
    assert float(inside.float().mean()) > 0.99
    assert torch.equal(sharing.choose_codes(latents, log_share_BJ)[inside], plain.choose_codes(latents)[inside])
    # the rest of the student is the same too
    middles = _middles(codes).expand(3, codes, 1)
    assert torch.equal(sharing(observation, middles), plain(observation, middles))


def test_shares_are_of_the_observation(make_student, observation) -> None:
    student = make_student(None, 1, 4, shares=True).requires_grad_(False)
    student.share_head.weight.copy_(_latents(4, 16) / SHARE_GAIN)
    share_BJ = student.log_shares(student.encode(observation)).exp()
    torch.testing.assert_close(share_BJ.sum(-1), torch.ones(3))
    assert float((share_BJ[0] - share_BJ[1]).abs().max()) > 1e-3
    # a chunk is that of the code that its own observation's shares give to the latent
    codes = student.generate_from_codes(student.encode(observation), _every(4), _latents(3, 4, 1))
    chunks = student(observation, _latents(3, 50, 1), normalised=True)
    up_to_BJ = share_BJ.double().cumsum(-1)
    for b in range(3):
        for chunk, (first,) in zip(chunks[b], _latents(3, 50, 1)[b].tolist(), strict=True):
            number = min(sum(NormalDist().cdf(first) >= value for value in up_to_BJ[b].tolist()), 3)
            torch.testing.assert_close(chunk, codes[b, number], rtol=1e-4, atol=1e-5)


def _every(codes: int) -> torch.Tensor:
    return torch.arange(codes).expand(3, -1)


@pytest.mark.parametrize("latent_size", [1, 3])
def test_the_codes_make_what_the_middles_of_the_shares_make(make_student, observation, latent_size: int) -> None:
    share = (0.1, 0.4, 0.05, 0.45)
    student = _sharing(make_student(None, latent_size, 4, shares=True), *share).requires_grad_(False)
    condition_BC = student.encode(observation)
    torch.testing.assert_close(student.log_shares(condition_BC).exp(), torch.tensor(share).expand(3, 4))
    others = _latents(3, 4, latent_size)  # the first number is not looked at, the others are
    latents = torch.cat([_within(*share).expand(3, -1, -1), others[..., 1:]], -1)
    every = student.generate_from_codes(condition_BC, _every(4), others)
    assert every.shape == (3, 4, 8, 2)
    torch.testing.assert_close(every, student.generate(condition_BC, latents), rtol=1e-5, atol=1e-5)
    some = student.generate_from_codes(condition_BC, torch.tensor([[3, 0], [1, 1], [0, 2]]), others[:, :1].expand(-1, 2, -1))
    first = student.generate_from_codes(condition_BC, _every(4), others[:, :1].expand(-1, 4, -1))
    expected = torch.stack([first[0, [3, 0]], first[1, [1, 1]], first[2, [0, 2]]])
    torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-5)
    # and without shares, those of even ones
    plain = make_student(None, latent_size, 4).requires_grad_(False)
    even = torch.cat([_middles(4).expand(3, -1, -1), others[..., 1:]], -1)
    every = plain.generate_from_codes(condition_BC, _every(4), others)
    torch.testing.assert_close(every, plain.generate(condition_BC, even), rtol=1e-5, atol=1e-5)


def test_without_codes_there_is_none_to_ask_for(make_student, observation) -> None:
    student = make_student()
    with pytest.raises(ValueError, match="generate_from_codes: this student has no codes"):
        student.generate_from_codes(student.encode(observation), _every(4), _latents(3, 4, 8))


def test_a_last_code_without_a_share_is_never_taken(make_student) -> None:
    student = make_student(None, 1, 5, shares=True)
    # where the share below a latent rounds to 1, the last code that has a share is meant
    log_share_BJ = torch.tensor([[0.25, 0.25, 0.0, 0.5, 0.0], [0.3, 0.3, 0.3, 0.1, 0.0]]).log()
    latents = torch.tensor([5.0, 5.5, 6.0, math.inf])[:, None].expand(2, -1, -1)
    assert student.choose_codes(latents, log_share_BJ).tolist() == [[3] * 4] * 2


def test_the_chunks_send_no_gradient_to_the_shares(make_student, observation) -> None:
    student = make_student(None, 1, 4, shares=True)
    student(observation, _latents(3, 5, 1)).square().sum().backward()
    assert student.code_book.grad is not None and student.code_book.grad.any()
    assert all(value.grad is None for name, value in student.named_parameters() if name.startswith("share_"))


def test_shares_of_no_codes_are_refused(small_shape) -> None:
    with pytest.raises(ValueError, match="shares: got codes 0, expected at least 2"):
        OneStepStudent(small_shape, 4, shares=True)


# -- on disk -------------------------------------------------------------------------------------------------------


def test_a_saved_student_comes_back_to_the_last_bit(make_student, observation, tmp_path: Path) -> None:
    student = make_student()
    student.save_pretrained(tmp_path)
    again = OneStepStudent.from_pretrained(tmp_path)
    assert again.latent_size == 5 and again.shape == student.shape and not again.training
    assert torch.equal(again(observation, _latents(3, 2, 5)), student(observation, _latents(3, 2, 5)))


@pytest.mark.parametrize("latent_size", [1, 3])
def test_a_saved_student_keeps_its_codes(make_student, observation, tmp_path: Path, latent_size: int) -> None:
    student, latents = make_student(None, latent_size, 6), _latents(3, 9, latent_size)
    student.save_pretrained(tmp_path)
    again = OneStepStudent.from_pretrained(tmp_path)
    assert (again.codes, again.latent_size) == (6, latent_size)
    assert torch.equal(again(observation, latents), student(observation, latents))
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "codes": 1}))
    with pytest.raises(ValueError, match="codes: got 1"):
        OneStepStudent.from_pretrained(tmp_path)


def test_a_saved_student_keeps_its_shares(make_student, observation, tmp_path: Path) -> None:
    student, latents = make_student(None, 1, 4, shares=True), _latents(3, 60, 1)
    even = student(observation, latents)
    with torch.no_grad():
        for number, value in enumerate((*student.share_head.parameters(), *student.share_correction.parameters())):
            value.copy_(_latents(*value.shape, seed=number))
    student.save_pretrained(tmp_path)
    again = OneStepStudent.from_pretrained(tmp_path)
    assert again.share_head is not None and not torch.equal(student(observation, latents), even)
    condition_BC = student.encode(observation)
    assert torch.equal(again.log_shares(condition_BC), student.log_shares(condition_BC))
    assert torch.equal(again(observation, latents), student(observation, latents))


def test_a_student_from_before_there_were_shares_has_none(make_student, observation, tmp_path: Path) -> None:
    student, latents = make_student(None, 1, 4), _latents(3, 9, 1)
    student.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("shares") is False
    path.write_text(json.dumps(saved))
    again = OneStepStudent.from_pretrained(tmp_path)
    assert again.codes == 4 and again.share_head is None and again.share_correction is None
    assert torch.equal(again(observation, latents), student(observation, latents))


def test_a_student_from_before_there_were_codes_has_none(make_student, observation, tmp_path: Path) -> None:
    student = make_student()
    student.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("codes") == 0
    path.write_text(json.dumps(saved))
    again = OneStepStudent.from_pretrained(tmp_path)
    assert again.codes == 0
    assert torch.equal(again(observation, _latents(3, 2, 5)), student(observation, _latents(3, 2, 5)))


def test_a_student_without_statistics_is_not_saved(small_shape, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="statistics.*not finite"):
        OneStepStudent(small_shape, 4).save_pretrained(tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_truncated_student_is_refused(make_student, tmp_path: Path) -> None:
    make_student().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        OneStepStudent.from_pretrained(tmp_path)
