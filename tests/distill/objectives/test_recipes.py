"""The recipes: each makes a student and a loss of what it is given; what they pick, pair and refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.config import Config, StudentConfig
from distill.hypotheses.cache import hypothesis_seeds, noise_of
from distill.hypotheses.distances import coverage, embed, fidelity, share_loss
from distill.objectives import flow_maps
from distill.objectives.recipes import RECIPES, Batch, FlowMapRecipe, LossModule, SetRecipe, TrainingContext, recipe
from distill.objectives.sets import OBJECTIVES, chamfer
from envs.specs import STATE
from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers.diffusion import DiffusionTeacher
from teachers.energy import EnergyTeacher
from teachers.trained import TrainedTeacher

HYPOTHESES = 5
SETTINGS = StudentConfig(batch_size=4, num_latents=3, latent_size=6)
SETS = [name for name, chosen in RECIPES.items() if isinstance(chosen, SetRecipe)]
NOISE = [name for name, chosen in OBJECTIVES.items() if chosen.noise]
BASELINES = [name for name, chosen in RECIPES.items() if isinstance(chosen, FlowMapRecipe)]
WEIGHTS_TA = torch.tensor([1.0, 3.0]).repeat(8, 1)


@pytest.fixture
def given(make_teacher) -> Callable[..., TrainingContext]:
    """What a recipe may use; keyword arguments change it, or the student's settings."""

    def build(teacher: Any = "flow", **changes: Any) -> TrainingContext:
        chosen = make_teacher() if teacher == "flow" else teacher
        normaliser = (chosen or make_teacher()).normaliser
        shape = changes.pop("shape", (chosen or make_teacher()).shape)
        return TrainingContext(shape, normaliser, chosen, replace(SETTINGS, **changes), HYPOTHESES, WEIGHTS_TA)

    return build


def _batch(teacher: TrainedTeacher, rows: int, num_steps: int = 2) -> Batch:
    """Everything that a batch of either kind holds: hypotheses made from their seeds, and a demonstrated chunk."""
    generator = torch.Generator().manual_seed(5)
    state = torch.tensor([0.25, -0.3]) + torch.tensor([0.5, 0.6]) * torch.rand(rows, 2, 2, generator=generator)
    seeds = hypothesis_seeds(0, torch.arange(rows).numpy(), HYPOTHESES)
    raw = teacher.sample_from_noise({STATE: state}, noise_of(seeds, (8, 2)), num_steps)
    return {
        STATE: state, "hypotheses": teacher.normaliser.normalise_action(raw), "seed": torch.from_numpy(seeds),
        "action": torch.tensor([0.2, -0.4]) + 0.6 * torch.rand(rows, 8, 2, generator=generator),
    }  # fmt: skip


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _made(name: str, given: TrainingContext) -> tuple[nn.Module, Batch, tuple[Tensor, ...]]:
    """A student of the recipe, and a batch and draws for one step of it."""
    chosen = RECIPES[name]
    torch.manual_seed(0)
    student, rows = chosen.build(given), chosen.rows(given.settings)
    assert given.teacher is not None
    return student, _batch(given.teacher, rows), chosen.draws(student, given, rows, _generator())


# -- all of them -----------------------------------------------------------------------------------------------------


def test_there_is_a_recipe_for_every_objective() -> None:
    assert set(OBJECTIVES) < set(RECIPES) and set(SETS) | set(BASELINES) == set(RECIPES)
    assert all(RECIPES[name].label == chosen.label for name, chosen in OBJECTIVES.items())
    assert len({chosen.label for chosen in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_sends_gradients_to_the_student_and_none_to_the_teacher(name: str, given) -> None:
    ingredients = given()
    student, batch, draws = _made(name, ingredients)
    lesson = LossModule(student, RECIPES[name], ingredients)
    # a batch holds what the recipe's kind of data holds, no more
    left_out = {"hypotheses": ("action",), "demonstrations": ("hypotheses", "seed")}[RECIPES[name].data]
    loss = lesson({key: value for key, value in batch.items() if key not in left_out}, *draws)
    assert loss.shape == () and bool(torch.isfinite(loss)) and float(loss.detach()) > 0
    loss.backward()
    trained = [value for value in student.parameters() if value.requires_grad]
    assert all(value.grad is not None and bool(torch.isfinite(value.grad).all()) for value in trained)
    # all but what is learned afterwards (distill.objectives.code_shares.calibrate)
    left = {key for key, value in student.named_parameters() if not value.requires_grad}
    assert all(key.startswith("share_correction.") for key in left)
    for part in ("encoder", "trunk"):
        assert any(bool(value.grad.any()) for value in student.get_submodule(part).parameters()), part  # type: ignore[union-attr]
    assert ingredients.teacher is not None and all(value.requires_grad for value in ingredients.teacher.parameters())
    assert all(value.grad is None for value in ingredients.teacher.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_lesson_trains_and_keeps_the_student_only(name: str, given) -> None:
    ingredients = given()
    student, _, _ = _made(name, ingredients)
    lesson = LossModule(student, RECIPES[name], ingredients)
    assert {key.removeprefix("student.") for key in lesson.state_dict()} == set(student.state_dict())
    assert [id(value) for value in lesson.parameters()] == [id(value) for value in student.parameters()]
    # and none of it is the teacher's own tensor
    shared = {value.data_ptr() for value in ingredients.teacher.state_dict().values()}
    assert not shared & {value.data_ptr() for value in student.state_dict().values()}


# the scale of a drift is that of a process's own part of the batch
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("drift")])
def test_the_shares_of_two_processes_make_the_loss_of_one(name: str, given) -> None:
    ingredients = given()
    student, batch, draws = _made(name, ingredients)
    rows = RECIPES[name].rows(SETTINGS)
    assert {len(draw) for draw in draws} == {rows} and rows % 2 == 0

    def loss(part: slice) -> float:
        share = {key: value[part] for key, value in batch.items()}
        return float(RECIPES[name].loss(student, ingredients, share, *(draw[part] for draw in draws)).detach())

    halves = [loss(slice(rank, None, 2)) for rank in range(2)]
    assert loss(slice(None)) == pytest.approx(sum(halves) / 2, rel=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_draws_come_from_the_generator_alone(name: str, given) -> None:
    student, _, draws = _made(name, given())
    torch.manual_seed(99)
    rows = RECIPES[name].rows(SETTINGS)
    again, other = (RECIPES[name].draws(student, given(), rows, _generator(seed)) for seed in (3, 4))
    assert all(torch.equal(first, second) for first, second in zip(draws, again, strict=True))
    assert not all(torch.equal(first, second) for first, second in zip(draws, other, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_a_student_begins_with_the_teachers_weights_unless_it_is_told_not_to(name: str, given) -> None:
    warm, cold = given(), given(warm_start=False)
    for ingredients in (warm, cold):
        student = RECIPES[name].build(ingredients)
        teacher = ingredients.teacher
        same = torch.equal(student.trunk.to_tokens.weight, teacher.trunk.to_tokens.weight)  # type: ignore[union-attr]
        assert same == ingredients.settings.warm_start
        assert torch.equal(student.normaliser.action_low, teacher.normaliser.action_low)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_costs_about_as_many_chunks_as_any_other(name: str) -> None:
    chosen = RECIPES[name]
    rows = chosen.rows(SETTINGS)
    assert rows == (4 * 3 if name in BASELINES else 4)
    assert chosen.cheap == (name == "regression") and chosen.teacher == (name != "imle_policy")


# -- sets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SETS if name not in (*NOISE, "imle_policy")])
def test_a_set_recipe_compares_the_chunks_of_its_latents_with_the_hypotheses(name: str, given) -> None:
    ingredients = given()
    student, batch, (latents,) = _made(name, ingredients)
    objective = OBJECTIVES[name]
    assert latents.shape == (4, 1 if name == "regression" else 3 * objective.pool_factor, 6)
    chunks = student({STATE: batch[STATE]}, latents, normalised=True).detach()
    got = float(RECIPES[name].loss(student, ingredients, batch, latents).detach())
    if objective.choose is None:
        expected = float(objective.loss(chunks, batch["hypotheses"], WEIGHTS_TA))
    elif name == "set_imle":  # the best of eight sets of three, observation by observation
        expected = 0.0
        for b in range(4):
            sets = [(chunks[b : b + 1, 3 * j : 3 * j + 3], batch["hypotheses"][b : b + 1]) for j in range(8)]
            expected += min(float(chamfer(*pair, WEIGHTS_TA)) for pair in sets) / 4
    else:  # the nearest of all 24 to every hypothesis, and the first three
        hypotheses = batch["hypotheses"]
        expected = float(coverage(chunks, hypotheses, WEIGHTS_TA) + fidelity(chunks[:, :3], hypotheses, WEIGHTS_TA))
    assert got == pytest.approx(expected, rel=1e-5)


def test_only_what_was_chosen_is_made_with_a_gradient(given) -> None:
    for name, chunks in (("set_imle", 3), ("large_pool", HYPOTHESES + 3)):
        ingredients = given()
        student, batch, draws = _made(name, ingredients)
        calls: list[tuple[int, bool]] = []
        student.get_submodule("trunk").register_forward_hook(
            lambda _, arguments, made, calls=calls: calls.append((len(arguments[0]), made.requires_grad))
        )
        RECIPES[name].loss(student, ingredients, batch, *draws)
        assert calls == [(4 * 24, False), (4 * chunks, True)]


SHARING = [name for name in SETS if name not in (*NOISE, "imle_policy", "regression")]


@pytest.mark.parametrize("name", SETS)
def test_a_student_learns_the_shares_of_its_codes(name: str, given) -> None:
    def shares(**changes: Any) -> bool:
        student = RECIPES[name].build(given(**changes))
        assert isinstance(student, OneStepStudent)
        return student.share_head is not None

    # unless it is told not to, has no codes, or makes one sample a step, which has no others to be compared with
    assert shares() == (name in SHARING)
    assert not shares(code_shares=False) and not shares(codes=0)


def test_a_sum_learns_shares_unless_one_sample_is_enough_for_all_of_it(given) -> None:
    for name, learns in (("chamfer+0.5energy_distance", True), ("chamfer+regression", True), ("2regression", False)):
        student = recipe(name).build(given())
        assert isinstance(student, OneStepStudent) and (student.share_head is not None) == learns, name


@pytest.mark.parametrize("name", SHARING)
def test_the_shares_learn_from_all_that_was_drawn(name: str, given) -> None:
    ingredients = given()
    student, batch, (latents,) = _made(name, ingredients)
    assert isinstance(student, OneStepStudent) and student.share_head is not None
    with torch.no_grad():
        student.share_head.weight.normal_(std=0.1, generator=_generator())
    (got,) = torch.autograd.grad(RECIPES[name].loss(student, ingredients, batch, latents), student.share_head.weight)
    assert bool(got.any())

    def expected(latents_BMZ: Tensor) -> Tensor:
        """Of share_loss alone, over the chunks of these latents."""
        log_share_BJ = student.log_shares(student.encode({STATE: batch[STATE]}))
        chunks = student({STATE: batch[STATE]}, latents_BMZ, normalised=True)
        log_share_BM = log_share_BJ.gather(1, student.choose_codes(latents_BMZ, log_share_BJ))
        loss = share_loss(log_share_BM, chunks, batch["hypotheses"], WEIGHTS_TA)
        return torch.autograd.grad(loss, student.share_head.weight)[0]

    torch.testing.assert_close(got, expected(latents), rtol=1e-3, atol=1e-6)
    # what is tried was drawn as the shares say; of the winners among it that is not true
    choose = OBJECTIVES[name].choose
    assert (choose is not None) == (name in ("set_imle", "large_pool"))
    if choose is not None:
        tried = student({STATE: batch[STATE]}, latents, normalised=True).detach()
        index_BN = choose(tried, batch["hypotheses"], WEIGHTS_TA, SETTINGS.num_latents)
        of_winners = expected(latents.gather(1, index_BN[..., None].expand(-1, -1, latents.shape[-1])))
        assert float((got - of_winners).norm() / got.norm()) > 0.1


@pytest.fixture
def diffusion(make_teacher) -> Callable[[str], DiffusionTeacher]:
    """The same network and statistics as a diffusion teacher."""

    def build(solver: str) -> DiffusionTeacher:
        teacher = DiffusionTeacher(make_teacher().shape, solver)
        teacher.load_state_dict(make_teacher().state_dict())
        return teacher.eval()

    return build


@pytest.mark.parametrize(("codes", "latent_size"), [(5, 1), (5, 3), (0, 6)])
def test_a_set_recipe_has_the_codes_and_the_latent_of_its_settings(given, codes: int, latent_size: int) -> None:
    ingredients = given(codes=codes, latent_size=latent_size)
    for name in ("chamfer", "regression"):
        student, _, (latents,) = _made(name, ingredients)
        assert isinstance(student, OneStepStudent) and (student.codes, student.latent_size) == (codes, latent_size)
        assert latents.shape[2] == latent_size
    for name in NOISE:  # from a noise: of the chunk's size, and no codes
        student, _, _ = _made(name, ingredients)
        assert isinstance(student, OneStepStudent) and (student.codes, student.latent_size) == (0, 16)
        assert student.from_latent is not None and torch.equal(student.from_latent.weight, torch.eye(16))


@pytest.mark.parametrize("name", NOISE)
def test_from_the_noise_of_m_hypotheses_a_set_is_compared_with_all_of_them(name: str, given) -> None:
    ingredients = given()
    student, batch, (order_BK,) = _made(name, ingredients)
    assert order_BK.shape == (4, HYPOTHESES)
    expected = 0.0
    for b in range(4):
        ranked = sorted(range(HYPOTHESES), key=order_BK[b].tolist().__getitem__)
        noise = noise_of(batch["seed"][b : b + 1, ranked[:3]].numpy(), (8, 2)).flatten(2)
        chunks = student({STATE: batch[STATE][b : b + 1]}, noise, normalised=True).detach()
        expected += float(OBJECTIVES[name].loss(chunks, batch["hypotheses"][b : b + 1, ranked], WEIGHTS_TA)) / 4
    assert float(RECIPES[name].loss(student, ingredients, batch, order_BK).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_noise_regression_is_zero_for_the_teachers_own_map(kind: str, given, diffusion) -> None:
    # a teacher at one Euler or DDIM step is its end point at t = 0, and that is what a warm student of its noise says
    ingredients = given() if kind == "flow" else given(teacher=diffusion("ddim"))
    student, _, draws = _made("noise_regression", ingredients)
    assert isinstance(student, OneStepStudent) and student.latent_size == 16 and draws[0].shape == (4, HYPOTHESES)
    assert student.codes == 0
    batch, loss = _batch(ingredients.teacher, 4, num_steps=1), RECIPES["noise_regression"].loss
    assert float(loss(student, ingredients, batch, *draws).detach()) < 1e-10
    # the noise of another hypothesis is another chunk, and two steps are another map
    mixed = {**batch, "seed": batch["seed"].roll(1, dims=1)}
    assert float(loss(student, ingredients, mixed, *draws).detach()) > 1e-2
    assert float(loss(student, ingredients, _batch(ingredients.teacher, 4), *draws).detach()) > 1e-4


def test_noise_regression_looks_at_m_of_the_k_hypotheses_at_random(given) -> None:
    ingredients = given()
    student, _, _ = _made("noise_regression", ingredients)
    batch = _batch(ingredients.teacher, 4, num_steps=1)
    order = torch.tensor([0.9, 0.1, 0.8, 0.3, 0.2]).expand(4, 5)  # 1, 4 and 3 are the first three
    for k in range(HYPOTHESES):
        far = {**batch, "hypotheses": batch["hypotheses"].clone()}
        far["hypotheses"][:, k] += 1.0
        loss = float(RECIPES["noise_regression"].loss(student, ingredients, far, order).detach())
        assert loss == pytest.approx(1 / 3 if k in (1, 3, 4) else 0.0, abs=1e-5)


def test_imle_policy_needs_no_teacher_and_learns_from_the_demonstrated_chunk(given, make_teacher) -> None:
    chosen, ingredients = RECIPES["imle_policy"], given(teacher=None)
    assert not chosen.teacher and chosen.data == "demonstrations" and ingredients.teacher is None
    student = chosen.build(ingredients)
    # its latent is a noise of the chunk's shape
    assert isinstance(student, OneStepStudent) and (student.codes, student.latent_size) == (0, 16)
    assert student.from_latent is not None and torch.equal(student.from_latent.weight, torch.eye(16))
    with torch.no_grad():
        student.trunk.from_tokens.weight.normal_(generator=_generator())
    batch = {key: value for key, value in _batch(make_teacher(), 4).items() if key in (STATE, "action")}
    (latents,) = chosen.draws(student, ingredients, 4, _generator())
    assert latents.shape == (4, 3 * OBJECTIVES["rs_imle"].pool_factor, 16)
    made = student({STATE: batch[STATE]}, latents, normalised=True).detach()
    target = (batch["action"] - torch.tensor([0.5, -0.1])) / 0.3  # centres and half ranges of the fixture
    distance_BM = (embed(made, WEIGHTS_TA) - embed(target[:, None], WEIGHTS_TA)).norm(dim=-1)
    # RS-IMLE: the nearest sample that is not nearer than 0.03
    nearest = [min(value for value in row if value > 0.03) for row in distance_BM.tolist()]
    assert float(chosen.loss(student, ingredients, batch, latents).detach()) == pytest.approx(sum(nearest) / 4, rel=1e-4)


def test_a_student_of_another_size_starts_from_nothing(given, small_shape) -> None:
    ingredients = given(shape=replace(small_shape, width=24, depth=2))
    student = RECIPES["chamfer"].build(ingredients)
    assert isinstance(student, OneStepStudent) and (student.shape.width, student.shape.depth) == (24, 2)
    assert not student.time_C.any() and torch.equal(student.normaliser.action_low, ingredients.normaliser.action_low)


# -- rivals ----------------------------------------------------------------------------------------------------------


def test_reflow_joins_every_hypothesis_with_its_own_noise(given) -> None:
    # one Euler step from the noise is the teacher's hypothesis, so at t = 0 its own map has nothing to learn
    ingredients = given()
    student, _, (time_N, chosen_N) = _made("reflow", ingredients)
    assert isinstance(student, FlowMapStudent)
    assert len((chosen_N * HYPOTHESES).long().unique()) == HYPOTHESES  # all of the five come up
    batch, loss = _batch(ingredients.teacher, 12, num_steps=1), RECIPES["reflow"].loss
    # the span says nothing yet, so the warm map is the teacher's prediction
    assert float(loss(student, ingredients, batch, torch.zeros(12), chosen_N).detach()) < 1e-10
    mixed = {**batch, "seed": batch["seed"].roll(1, dims=1)}
    assert float(loss(student, ingredients, mixed, torch.zeros(12), chosen_N).detach()) > 1e-2
    assert bool((time_N == 0).any()) and bool((time_N > 0).any())


def test_the_rivals_are_given_normalised_demonstrations_and_the_weights(given) -> None:
    ingredients = given()
    teacher = ingredients.teacher
    for name in ("consistency", "shortcut", "mean_flow"):
        student, batch, draws = _made(name, ingredients)
        observation, action = {STATE: batch[STATE]}, (batch["action"] - torch.tensor([0.5, -0.1])) / 0.3
        direct = {
            "consistency": lambda s, o, a, d: flow_maps.consistency_loss(s, teacher, o, a, *d, weights_TA=WEIGHTS_TA),
            "shortcut": lambda s, o, a, d: flow_maps.shortcut_loss(s, o, a, *d, teacher=teacher, weights_TA=WEIGHTS_TA),
            "mean_flow": lambda s, o, a, d: flow_maps.mean_flow_loss(s, o, a, *d, weights_TA=WEIGHTS_TA),
        }[name]
        expected = direct(student, observation, action, draws)
        torch.testing.assert_close(RECIPES[name].loss(student, ingredients, batch, *draws), expected, rtol=1e-5, atol=1e-6)
        # the weights turn the gradient, even where a loss is divided by its own size
        even, turned = replace(ingredients, weights_TA=torch.ones(8, 2)), []
        for chosen in (ingredients, even):
            loss = RECIPES[name].loss(student, chosen, batch, *draws)
            turned.append(torch.autograd.grad(loss, student.get_submodule("trunk").from_tokens.bias)[0])  # type: ignore[arg-type]
        assert float(nn.functional.cosine_similarity(*turned, dim=0)) < 0.99, name


# -- what cannot be trained --------------------------------------------------------------------------------------------


def _config(student: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, solver: str = "") -> Config:
    config = Config()
    return replace(
        config, student=replace(config.student, **student or {}), teacher=replace(config.teacher, **teacher or {}),
        sample=replace(config.sample, solver=solver),
    )  # fmt: skip


def _refused(name: str, config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(name).check(name, config)


@pytest.mark.parametrize("name", [*NOISE, "2noise_regression", "chamfer+noise_regression"])
def test_a_recipe_from_noise_has_only_the_noises_of_the_cache(name: str) -> None:
    hypotheses = Config().sample.num_hypotheses
    recipe(name).check(name, _config({"num_latents": hypotheses}))
    more = _config({"num_latents": hypotheses + 1})
    message = f"num_latents: got {hypotheses + 1}, but {name} has only the {hypotheses} cached noises .* raise sample"
    _refused(name, more, message.replace("+", re.escape("+")))
    RECIPES["chamfer"].check("chamfer", more)


@pytest.mark.parametrize("name", [*NOISE, "chamfer+noise_regression"])
def test_a_recipe_from_noise_needs_chunks_that_were_made_from_one_noise_each(name: str, given, diffusion) -> None:
    message = f"{re.escape(name)} pairs each chunk with the one noise .* use --student.objectives chamfer"
    for teacher, solver, fits in (
        ({}, "heun", True), ({"kind": "diffusion"}, "", True), ({"kind": "diffusion"}, "ddim", True),
        ({"kind": "diffusion", "solver": "ddpm"}, "", True),  # the cache has its own solver
        ({"kind": "diffusion"}, "ddpm", False), ({"kind": "energy"}, "", False),
    ):  # fmt: skip
        config = _config(teacher=teacher, solver=solver)
        if fits:
            recipe(name).check(name, config)
        else:
            _refused(name, config, message)
    # and those that say so themselves, when they are there
    recipe(name).build(given(teacher=diffusion("ddim")))
    energy = EnergyTeacher(given().shape)
    energy.load_state_dict(given().teacher.state_dict())
    for other in (diffusion("ddpm"), energy):
        with pytest.raises(ValueError, match=f"one noise it was generated from; {type(other).__name__} takes more than one"):
            recipe(name).build(given(teacher=other))


@pytest.mark.parametrize("kind", ["diffusion", "energy"])
@pytest.mark.parametrize("name", BASELINES)
def test_what_follows_a_flow_needs_a_flow(name: str, kind: str) -> None:
    RECIPES[name].check(name, _config())
    _refused(name, _config(teacher={"kind": kind}), f"{name} .*teacher.*'flow'")
    RECIPES["chamfer"].check("chamfer", _config(teacher={"kind": kind}))


@pytest.mark.parametrize("name", BASELINES)
def test_a_rival_is_of_the_teachers_size(name: str) -> None:
    wide = _config({"width": 64})
    _refused(name, wide, f"{name} starts from the teacher's weights; leave student.width at 0")
    RECIPES["chamfer"].check("chamfer", wide)
    assert RECIPES[name].settings(_config({"depth": 2})).depth == 0 != RECIPES["chamfer"].settings(_config({"depth": 2})).depth


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_one_is_no_set(name: str) -> None:
    if name == "regression":
        RECIPES[name].check(name, _config({"num_latents": 1}))
    else:
        _refused(name, _config({"num_latents": 1}), r"student\.num_latents: got 1, expected at least 2")


@pytest.mark.parametrize("name", BASELINES)
def test_a_teacher_from_elsewhere_that_is_no_flow_is_refused_when_it_is_there(
    name: str, given, small_shape, statistics
) -> None:
    teacher = DiffusionTeacher(small_shape)
    teacher.normaliser.fit(statistics)
    with pytest.raises(ValueError, match="flow.*got DiffusionTeacher"):
        RECIPES[name].build(given(teacher=teacher))
    RECIPES["chamfer"].build(given(teacher=teacher))


@pytest.mark.parametrize("name", BASELINES)
def test_a_rival_of_another_size_is_not_built(name: str, given, small_shape) -> None:
    with pytest.raises(ValueError, match="starts from the teacher's weights"):
        RECIPES[name].build(given(shape=replace(small_shape, width=24)))


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_name_is_a_recipe_or_a_sum_of_objectives() -> None:
    assert all(recipe(name) is chosen for name, chosen in RECIPES.items())
    weighted = recipe("chamfer+0.5energy_distance")
    assert isinstance(weighted, SetRecipe) and weighted.label == "chamfer+0.5energy_distance"
    assert weighted.data == "hypotheses" and weighted.teacher and not weighted.cheap and recipe("2regression").cheap


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shortcutt", "student.objectives: unknown 'shortcutt'; .*Did you mean 'shortcut'?"),
        ("mean_flows", "unknown 'mean_flows'; .*Did you mean 'mean_flow'?"),
        ("imle_policies", "Did you mean 'imle_policy'?"),
        ("chamfer+reflow", "unknown objective 'reflow'"),
        ("reflow@2", "unknown objective 'reflow'"),
        ("chamfer+energy_distnce", "Did you mean 'energy_distance'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", re.escape("?"))):
        recipe(name)
