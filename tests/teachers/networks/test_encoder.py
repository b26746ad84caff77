"""The unified encoder: fusion by loops, a source that is left out has no trace, gradients reach every sense, and it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks.encoder import Fusion, UnifiedEncoder
from teachers.networks.normalisation import Normaliser
from teachers.networks.observations import fake_observation
from teachers.networks.shapes import EncoderShape, PolicyShape


@pytest.fixture
def encoder(seeing_shape: PolicyShape) -> UnifiedEncoder:
    torch.manual_seed(0)
    return UnifiedEncoder(seeing_shape).eval()


@pytest.fixture
def inputs(seeing_shape: PolicyShape, seen: Observation, statistics) -> Observation:
    normaliser = Normaliser.of(seeing_shape)
    normaliser.fit(statistics)
    found = normaliser.normalise(seen)
    found[STATE] = found[STATE][..., 1:]
    return found


# -- fusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_fusion_against_loops(masked: bool) -> None:
    width, heads, queries, length = 8, 2, 3, 5
    torch.manual_seed(0)
    fusion, tokens = Fusion(width, heads, queries), torch.randn(1, length, width)
    kept = torch.tensor([[True, False, True, True, False]]) if masked else None
    normed = fusion.norm(tokens[0])
    there = [i for i in range(length) if kept is None or bool(kept[0, i])]
    answers = []
    for query in fusion.query_QF:
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.stack([query[part] @ fusion.to_key(normed[i])[part] / 2 for i in there])
            answers.append(sum(w * fusion.to_value(normed[i])[part] for w, i in zip(scores.softmax(0), there, strict=True)))
    torch.testing.assert_close(fusion(tokens, kept)[0], fusion.layers(torch.cat(answers)), rtol=1e-4, atol=1e-5)


def test_tokens_carry_their_source_and_their_step(encoder: UnifiedEncoder, inputs: Observation) -> None:
    got: list[Tensor] = []
    encoder.fusion.register_forward_pre_hook(lambda _, arguments: got.append(arguments[0]))
    first = encoder(inputs)
    assert got[0].shape == (3, 5 * 2, 16)  # five sources, two steps
    plain = got[0].unflatten(1, (5, 2)) - encoder.source_MF[:, None] - encoder.step_OF
    # the state's by its own network, the wrist's image of the second step by the shared one and its own last layer
    torch.testing.assert_close(plain[:, 0, 1], encoder.state(inputs[STATE][:, 1:]), rtol=1e-4, atol=1e-5)
    wrist = encoder.to_token["images/wrist"](encoder.colour(inputs["observation.images.wrist"][:, 1]))
    torch.testing.assert_close(plain[:, 2, 1], wrist, rtol=1e-4, atol=1e-5)
    swapped = encoder({name: value.flip(1) for name, value in inputs.items()})
    assert not torch.allclose(swapped, first, atol=1e-4)  # the present differs from the past


def test_two_cameras_with_one_picture_are_still_two(encoder: UnifiedEncoder, inputs: Observation) -> None:
    front, wrist = "observation.images.front", "observation.images.wrist"
    exchanged = {**inputs, front: inputs[wrist], wrist: inputs[front]}
    assert not torch.allclose(encoder(exchanged), encoder(inputs), atol=1e-4)


def test_without_a_gradient_colours_and_depth_go_together_and_are_the_same(
    encoder: UnifiedEncoder, inputs: Observation, seeing_shape: PolicyShape
) -> None:
    torch.manual_seed(0)  # as many views in depth as in colour, which is when they do
    even = UnifiedEncoder(replace(seeing_shape, encoder=replace(seeing_shape.encoder, cameras=("front",))))
    for each in (encoder, even):
        seen = {name: value for name, value in inputs.items() if name in each.sources}
        calls: list[str] = []
        for name in ("colour", "depth"):
            getattr(each, name).register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        trained = each(seen)
        assert calls == ["colour", "depth"]
        with torch.no_grad():
            torch.testing.assert_close(each(seen), trained, rtol=1e-4, atol=1e-5)
        assert calls == ["colour", "depth"] * (1 if each is even else 2)


def test_rows_do_not_mix(encoder: UnifiedEncoder, inputs: Observation) -> None:
    together = encoder(inputs)
    for row in range(3):
        alone = encoder({name: value[row : row + 1] for name, value in inputs.items()})[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)


# -- leaving out -------------------------------------------------------------------------------------------------------


def test_a_source_that_is_not_shown_has_no_influence_at_all(encoder: UnifiedEncoder, inputs: Observation) -> None:
    for index, name in enumerate(encoder.sources):
        kept_BM = torch.ones(3, 5, dtype=torch.bool)
        kept_BM[1, index] = False
        other = {**inputs, name: torch.rand_like(inputs[name])}
        before, after = encoder(inputs, kept_BM), encoder(other, kept_BM)
        assert torch.equal(before[1], after[1]), name
        assert not torch.allclose(before[0], after[0], atol=1e-5), name
        gone = encoder({key: value for key, value in inputs.items() if key != name})
        torch.testing.assert_close(gone[1], before[1], rtol=1e-4, atol=1e-6)  # as if it had not come


def test_a_source_that_is_not_shown_gets_no_gradient(encoder: UnifiedEncoder, inputs: Observation) -> None:
    kept_BM = torch.tensor([[True, True, True, True, False]] * 3)
    encoder(inputs, kept_BM).square().sum().backward()
    assert all(value.grad is not None and not value.grad.any() for value in encoder.points.parameters())
    assert encoder.depth.heat.weight.grad.any()


# -- learning ----------------------------------------------------------------------------------------------------------


def test_the_gradient_reaches_every_weight_and_every_input(encoder: UnifiedEncoder, inputs: Observation) -> None:
    wanting = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    encoder(wanting).square().sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()] == []
    for name, value in wanting.items():  # of every row and step
        assert bool(value.grad.flatten(2).any(-1).all()), name


@pytest.mark.parametrize(
    "source", [STATE, "observation.images.front", "observation.depth.front", "observation.points"]
)
def test_a_subset_of_one_has_no_more_than_it_needs(seeing_shape: PolicyShape, source: str) -> None:
    alone = {
        STATE: {"state_names": ("tool_y_m",)}, "observation.images.front": {"cameras": ("front",)},
        "observation.depth.front": {"depth_cameras": ("front",)}, "observation.points": {"num_points": 9},
    }[source]  # fmt: skip
    small = EncoderShape(image_size=(16, 16), width=16, heads=2, queries=2, channels=16, **alone)  # type: ignore[arg-type]
    encoder = UnifiedEncoder(replace(seeing_shape, encoder=small))
    assert encoder.sources == (source,)
    sense = {STATE: "state", "observation.points": "points"}.get(source, source.split(".")[1].replace("images", "colour"))
    assert {name for name, part in encoder.named_children() if len(list(part.parameters()))} == {sense, "fusion"} | (
        {"to_token"} if source != STATE else set()
    )


def _scene(kind: str, place_B2: Tensor, generator: torch.Generator) -> Observation:
    """An object at a place in [-1, 1] x [-1, 1] that one kind of sense sees: a blob in an image, a cube among other points."""
    batch = len(place_B2)
    if kind == "points":
        clutter = torch.rand(batch, 1, 40, 3, generator=generator) * 2 - 1
        clutter[..., 2] = -1.0
        there_B12 = place_B2[:, None]
        cube = torch.rand(batch, 1, 24, 3, generator=generator) * 0.1
        cube[..., :2] += there_B12[:, :, None]
        return {"observation.points": torch.cat([clutter, cube], 2)}
    down, right = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    away = (down - place_B2[:, :1, None]) ** 2 + (right - place_B2[:, 1:, None]) ** 2
    blob = (-away / 0.03).exp()[:, None, None]
    if kind == "depth":  # metres: a bump on a plane, and some pixels unknown, which is what a sensor gives
        known = torch.rand(blob.shape, generator=generator) > 0.05
        return {"observation.depth.front": torch.where(known, 1.2 - 0.3 * blob, torch.nan)}
    return {"observation.images.front": (0.2 + 0.6 * blob * torch.tensor([1.0, 0.3, 0.1])[:, None, None])}


KINDS = {"points": {"num_points": 64}, "depth": {"depth_cameras": ("front",)}, "images": {"cameras": ("front",)}}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_where_an_object_is_that_one_sense_alone_shows(
    make_teacher, small_shape: PolicyShape, statistics, kind: str
) -> None:
    # the state is seen, too, and says nothing
    seen = EncoderShape(state_names=("tool_x_m",), image_size=(24, 24), width=32, channels=16, **KINDS[kind])  # type: ignore[arg-type]
    policy = make_teacher(observation_steps=1, encoder=seen, width=32)
    policy.normaliser.fit({**statistics, "points": {"min": -torch.ones(3).numpy(), "max": torch.ones(3).numpy()}})
    torch.manual_seed(0)
    policy.encoder, head = UnifiedEncoder(policy.shape), nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*policy.encoder.parameters(), *head.parameters()], 3e-3)
    generator = torch.Generator().manual_seed(0)

    def error(batch: int, steps: tuple[Tensor, ...]) -> Tensor:
        place_B2 = torch.rand(batch, 2, generator=generator) * 1.6 - 0.8
        observation = {STATE: torch.rand(batch, 1, 2, generator=generator), **_scene(kind, place_B2, generator)}
        return (head(policy.encode(observation, *steps)) - place_B2).square().mean()

    for step in range(100):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 100)
        loss = error(32, policy.train().encoder_draws(32, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    with torch.no_grad():
        rms = float(error(256, ()).sqrt())
    # guessing the middle is wrong by 1.6 / sqrt(12) = 0.46; a pixel of the image is 0.087
    assert rms < 0.2, rms


def test_every_shape_of_made_up_observation_is_encoded(make_teacher) -> None:
    for steps in (1, 3):
        seen = EncoderShape(cameras=("a.b", "c"), num_points=16, image_size=(16, 20), width=16, channels=16)
        policy = make_teacher(observation_steps=steps, encoder=seen)
        feature = policy.encode(fake_observation(policy.shape, 4))
        assert feature.shape == (4, 16) and bool(feature.isfinite().all())
