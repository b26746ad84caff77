"""Encoding by a policy: state only as ever, once an observation, what is unknown or missing, frozen and borrowed encoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.specs import STATE
from teachers import TEACHERS, load_teacher
from teachers.contract import FEATURES, Observation, check_teacher
from teachers.flow import FlowTeacher
from teachers.networks.augmentation import NO_AUGMENTATION
from teachers.networks.observations import fake_observation, sources_of
from teachers.networks.pretrained import load_encoder
from teachers.networks.shapes import EncoderShape, PolicyShape
from teachers.networks.transformer import StateEncoder, TimeEmbedding, TrajectoryTransformer

FRONT, DEEP, CLOUD = "observation.images.front", "observation.depth.front", "observation.points"


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def seeing(make_teacher, seeing_shape: PolicyShape) -> FlowTeacher:
    """A small teacher that sees everything; its encoder is fresh, its head has random weights."""
    return _seeing(make_teacher, seeing_shape, "flow")


def _seeing(make_teacher, seeing_shape: PolicyShape, kind: str):
    torch.manual_seed(1)
    fresh = TEACHERS[kind](seeing_shape).encoder.state_dict()
    teacher = make_teacher(1, "", kind, 0.2, encoder=seeing_shape.encoder)
    teacher.encoder.load_state_dict(fresh)
    return teacher


# -- state only, as before there were encoders -------------------------------------------------------------------------

OLD_CONFIG = """{"schema_version": 1, "kind": "flow_teacher", "shape": {"task": "avoid", "state_names": ["a", "b", "c"],
"action_names": ["x", "y"], "action_weights": [1.0, 1.0], "dt_s": 0.05, "observation_steps": 2, "horizon": 8, "width": 16,
"depth": 1, "heads": 2, "patch": 4}, "solver": "euler", "time_power": 1.0}"""

OLD_WEIGHTS = {
    "normaliser.state_low": (3,), "normaliser.state_high": (3,), "normaliser.action_low": (2,), "normaliser.action_high": (2,),
    "encoder.layers.1.weight": (32, 6), "encoder.layers.1.bias": (32,), "encoder.layers.3.weight": (16, 32),
    "encoder.layers.3.bias": (16,), "time.layers.0.weight": (16, 16), "time.layers.0.bias": (16,),
    "time.layers.2.weight": (16, 16), "time.layers.2.bias": (16,), "trunk.position": (2, 16),
    "trunk.to_tokens.weight": (16, 8), "trunk.to_tokens.bias": (16,), "trunk.norm.weight": (16,), "trunk.norm.bias": (16,),
    "trunk.from_tokens.weight": (8, 16), "trunk.from_tokens.bias": (8,), "trunk.blocks.0.to_qkv.weight": (48, 16),
    "trunk.blocks.0.to_qkv.bias": (48,), "trunk.blocks.0.from_attention.weight": (16, 16),
    "trunk.blocks.0.from_attention.bias": (16,), "trunk.blocks.0.feedforward.0.weight": (64, 16),
    "trunk.blocks.0.feedforward.0.bias": (64,), "trunk.blocks.0.feedforward.2.weight": (16, 64),
    "trunk.blocks.0.feedforward.2.bias": (16,), "trunk.blocks.0.modulation.weight": (96, 16),
    "trunk.blocks.0.modulation.bias": (96,),
}  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A teacher's folder as it was written before there were encoders, and its weights."""
    generator = _generator(0)
    weights = {name: 0.3 * torch.randn(size, generator=generator) for name, size in OLD_WEIGHTS.items()}
    weights |= {f"normaliser.{name}_low": torch.full((size,), -2.0) for name, size in (("state", 3), ("action", 2))}
    weights |= {f"normaliser.{name}_high": torch.full((size,), 4.0) for name, size in (("state", 3), ("action", 2))}
    (tmp_path / "config.json").write_text(OLD_CONFIG)
    save_file(weights, str(tmp_path / "model.safetensors"))
    return tmp_path, weights


def test_an_old_folder_is_loaded_and_encodes_to_the_same_bits(old: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = old
    teacher, state_BOS = load_teacher(folder), torch.randn(5, 2, 3, generator=_generator(1))
    # centre 1, half range 3; two linear maps with SiLU between
    first, second = ((weights[f"encoder.layers.{i}.weight"], weights[f"encoder.layers.{i}.bias"]) for i in (1, 3))
    expected = F.linear(F.silu(F.linear(((state_BOS - 1) / 3).flatten(1), *first)), *second)
    assert torch.equal(teacher.encode({STATE: state_BOS}), expected)
    assert teacher.adapt is None and isinstance(teacher.encoder, StateEncoder) and teacher.shape.encoder is None


def test_an_old_folder_is_written_again_byte_by_byte(old: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, weights = old
    load_teacher(folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(OLD_CONFIG)
    again = load_file(str(tmp_path / "again" / "model.safetensors"))
    assert set(again) == set(OLD_WEIGHTS) and all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_state_only_policy_begins_with_the_same_random_weights_and_needs_no_draws(small_shape: PolicyShape) -> None:
    torch.manual_seed(4)
    teacher = FlowTeacher(small_shape)
    torch.manual_seed(4)
    parts = {"encoder": StateEncoder(2, 2, 16), "time": TimeEmbedding(16), "trunk": TrajectoryTransformer(small_shape)}
    expected = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.named_parameters()}
    assert list(expected) == [name for name, _ in teacher.named_parameters()]
    assert all(torch.equal(value, expected[name]) for name, value in teacher.named_parameters())
    assert teacher.encoder_draws(5, _generator(0)) == () and len(teacher.training_draws(5, _generator(0))) == 2


def test_a_state_only_policy_says_that_the_state_is_missing(make_teacher) -> None:
    with pytest.raises(ValueError, match=r"\['observation.state'\] is missing; got \['observation.points'\]"):
        make_teacher().encode({CLOUD: torch.zeros(1, 2, 9, 3)})


# -- seeing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_every_kind_sees_and_keeps_the_contract(make_teacher, seeing_shape, seen: Observation, kind: str) -> None:
    check_teacher(_seeing(make_teacher, seeing_shape, kind), seen, action_size=2, num_steps=4)


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_an_observation_is_encoded_once_however_many_chunks_are_drawn(
    make_teacher, seeing_shape, seen: Observation, kind: str
) -> None:
    teacher, calls = _seeing(make_teacher, seeing_shape, kind), []
    for name in ("colour", "depth", "points", "fusion"):
        getattr(teacher.encoder, name).register_forward_hook(
            lambda _, arguments, __, name=name: calls.append((name, len(arguments[0])))
        )
    assert teacher.sample(seen, 7, 4, _generator(0)).shape == (3, 7, 8, 2)
    # three rows, two steps, two cameras
    assert calls == [("colour", 12), ("depth", 6), ("points", 6), ("fusion", 3)]


def test_only_the_named_numbers_of_the_state_are_seen(seeing: FlowTeacher, seen: Observation) -> None:
    feature = seeing.features(seen)
    hidden = {**seen, STATE: seen[STATE] + torch.tensor([0.3, 0.0])}  # tool_x_m is not in state_names
    assert torch.equal(seeing.features(hidden), feature)
    shifted = {**seen, STATE: seen[STATE] + torch.tensor([0.0, 0.3])}
    assert not torch.allclose(seeing.features(shifted), feature, atol=1e-4)


def test_every_source_matters_and_no_other_feature_does(seeing: FlowTeacher, seen: Observation) -> None:
    feature, other = seeing.features(seen), fake_observation(seeing.shape, 3, seed=8)
    for name in seen:
        assert not torch.allclose(seeing.features({**seen, name: other[name]}), feature, atol=1e-5), name
    assert torch.equal(seeing.features({**seen, "observation.images.left": torch.full((3,), torch.nan)}), feature)


def test_a_missing_camera_is_an_error_and_doing_without_it_is_said_aloud(seeing: FlowTeacher, seen: Observation) -> None:
    whole = seeing.features(seen)
    front = seen.pop(FRONT)
    with pytest.raises(ValueError, match="'observation.images.front'. is missing"):
        seeing.encode(seen)
    without = seeing.features(seen, without=(FRONT,))
    assert not torch.allclose(without, whole, atol=1e-5)
    broken = torch.full_like(front, torch.nan)  # not looked at, if it came
    assert torch.equal(seeing.features({**seen, FRONT: broken}, without=(FRONT,)), without)


def test_what_cannot_be_seen_is_refused(seeing: FlowTeacher, seen: Observation) -> None:
    seen[CLOUD][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="observation.points: got NaN"):
        seeing.sample(seen, 2, 2, _generator(0))


def test_unknown_depth_is_told_from_any_depth(seeing: FlowTeacher, seen: Observation) -> None:
    blind = {**seen, DEEP: torch.full_like(seen[DEEP], torch.nan)}
    feature = seeing.features(blind)
    assert bool(feature.isfinite().all())
    for depth_m in (0.4, 0.9, 1.4):  # among them the middle, which is 0 when normalised
        flat = {**seen, DEEP: torch.full_like(seen[DEEP], depth_m)}
        assert not torch.allclose(seeing.features(flat), feature, atol=1e-5)


def test_a_sparse_cloud_is_encoded_as_it_is(seeing: FlowTeacher, seen: Observation) -> None:
    few = {**seen, CLOUD: seen[CLOUD][:, :, :8]}
    repeated = {**seen, CLOUD: seen[CLOUD][:, :, :8].repeat(1, 1, 4, 1)}
    torch.testing.assert_close(seeing.features(few), seeing.features(repeated), rtol=1e-5, atol=1e-6)


def test_halves_as_they_are_stored_will_do(seeing: FlowTeacher, seen: Observation) -> None:
    stored = {name: value.half() for name, value in seen.items()}
    torch.testing.assert_close(seeing.features(stored), seeing.features(seen), rtol=0, atol=0.02)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_the_loss_depends_on_its_draws_only_and_reaches_every_weight(make_teacher, seeing_shape, seen, kind: str) -> None:
    teacher, action = _seeing(make_teacher, seeing_shape, kind).train(), torch.rand(3, 8, 2)
    draws = teacher.training_draws(3, _generator(1))
    assert [len(draw) for draw in draws] == [3, 3, 3] and draws[-1].dtype == torch.int64
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(teacher(seen, action, *draws))
    assert torch.equal(losses[0], losses[1])
    other = teacher.training_draws(3, _generator(2))[-1]
    assert not torch.equal(teacher(seen, action, *draws[:-1], other), losses[0])  # another augmentation
    losses[0].backward()
    assert [name for name, value in teacher.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_in_training_an_encoder_asks_for_its_seeds_and_afterwards_it_does_not_heed_them(seeing, seen: Observation) -> None:
    plain, seeds_B = seeing.encode(seen), seeing.encoder_draws(3, _generator(0))[0]
    assert torch.equal(seeing.encode(seen, seeds_B), plain)
    seeing.train()
    for wrong in (None, seeds_B[:2], seeds_B.float()):
        with pytest.raises(ValueError, match="needs an int64 seed for each of 3 rows, got"):
            seeing.encode(seen, wrong)
    augmented = seeing.encode(seen, seeds_B)
    assert not torch.allclose(augmented, plain, atol=1e-4)
    # a process that has rows 1 and 2 only encodes them as all together are
    part = seeing.encode({name: value[1:] for name, value in seen.items()}, seeds_B[1:])
    torch.testing.assert_close(part, augmented[1:], rtol=1e-4, atol=1e-5)


def test_a_training_that_stopped_goes_on_to_the_same_bits(make_teacher, seeing_shape, seen: Observation) -> None:
    action = torch.rand(3, 8, 2, generator=_generator(9))

    def train(teacher: FlowTeacher, first: int, last: int) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(teacher.parameters(), 1e-2)
        for step in range(first, last):  # all that is drawn is a function of the step
            loss = teacher.train()(seen, action, *teacher.training_draws(3, _generator(step)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: value.clone() for name, value in teacher.state_dict().items()}

    whole = train(_seeing(make_teacher, seeing_shape, "flow"), 0, 4)
    half = train(_seeing(make_teacher, seeing_shape, "flow"), 0, 2)
    torch.manual_seed(123)  # whatever the global random state is
    again = _seeing(make_teacher, seeing_shape, "flow")
    again.load_state_dict(half)
    rest = train(again, 2, 4)
    assert all(torch.equal(value, whole[name]) for name, value in rest.items())
    assert not all(torch.equal(value, whole[name]) for name, value in half.items())


def test_without_augmentation_training_encodes_as_ever(make_teacher, seeing_shape, seen: Observation) -> None:
    plain = replace(seeing_shape, encoder=replace(seeing_shape.encoder, augmentation=NO_AUGMENTATION))
    teacher = _seeing(make_teacher, plain, "flow")
    assert teacher.encoder_draws(3, _generator(0)) == ()
    evaluated = teacher.encode(seen)
    torch.testing.assert_close(teacher.train().encode(seen), evaluated, rtol=1e-5, atol=1e-6)


# -- features that were made before ------------------------------------------------------------------------------------


def test_features_stand_for_the_observation(seeing: FlowTeacher, seen: Observation) -> None:
    feature = seeing.features(seen)
    chunks = seeing.sample({FEATURES: feature}, 4, 3, _generator(0))
    assert torch.equal(chunks, seeing.sample(seen, 4, 3, _generator(0)))
    with pytest.raises(ValueError, match=r"features: got \(3, 15\), expected \(B, 16\)"):
        seeing.encode({FEATURES: feature[:, :15]})
    with pytest.raises(ValueError, match="is being trained and would learn nothing; call freeze_encoder"):
        seeing.train().encode({FEATURES: feature})
    seeing.freeze_encoder()
    assert seeing.training and torch.equal(seeing.encode({FEATURES: feature.double()}), feature)


# -- frozen and borrowed -----------------------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_as_it_is_whatever_mode_the_rest_is_in(seeing: FlowTeacher, seen: Observation) -> None:
    plain = seeing.encode(seen)
    seeing.freeze_encoder()
    for mode in (True, False, True):
        seeing.train(mode)
        assert seeing.trunk.training == mode and not seeing.encoder.training
        assert not any(module.training for module in seeing.encoder.modules())
        assert seeing.encoder_draws(3, _generator(0)) == ()
        torch.testing.assert_close(seeing.encode(seen), plain)
        assert not seeing.encode(seen).requires_grad
    seeing(seen, torch.rand(3, 8, 2), *seeing.training_draws(3, _generator(0))).backward()
    assert all(value.grad is None for value in seeing.encoder.parameters())
    assert all(value.grad is not None for value in seeing.trunk.parameters())
    seeing.freeze_encoder(False)
    assert seeing.encoder.training and all(value.requires_grad for value in seeing.encoder.parameters())


@pytest.mark.parametrize("share", [False, True])
def test_a_borrowed_encoder_makes_the_same_features_for_a_head_of_another_size(
    make_teacher, seeing: FlowTeacher, seen: Observation, share: bool
) -> None:
    narrow = make_teacher(3, encoder=seeing.shape.encoder, width=8, depth=2)
    narrow.normaliser.points_low.fill_(-9.0)  # other statistics would make other features
    narrow.normaliser.action_low.fill_(-5.0)
    narrow.take_encoder(seeing, share=share)
    assert torch.equal(narrow.features(seen), seeing.features(seen))
    assert narrow.encode(seen).shape == (3, 8) and bool((narrow.normaliser.action_low == -5).all())
    assert (narrow.encoder is seeing.encoder) == share
    torch.testing.assert_close(narrow.encode(seen), F.linear(seeing.features(seen), narrow.adapt.weight, narrow.adapt.bias))


def test_an_encoder_that_sees_something_else_is_not_taken(make_teacher, seeing: FlowTeacher) -> None:
    for shape, name in (
        (replace(seeing.shape.encoder, num_points=64), "num_points=64"),
        (replace(seeing.shape.encoder, queries=1), "queries=1"), (None, "'encoder': None"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"encoder: got one with .*expected .*{name}.*the same encoder shape"):
            make_teacher(encoder=shape).take_encoder(seeing)


def test_a_state_encoder_can_be_taken_too(make_teacher, observation: Observation) -> None:
    teacher, other = make_teacher(0), make_teacher(3)
    other.take_encoder(teacher)
    assert torch.equal(other.encode(observation), teacher.encode(observation))
    with pytest.raises(ValueError, match="'width': 16.*'width': 8"):
        make_teacher(width=8).take_encoder(teacher)


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_a_saved_policy_sees_the_same(make_teacher, seeing_shape, seen: Observation, tmp_path: Path, kind: str) -> None:
    teacher = _seeing(make_teacher, seeing_shape, kind)
    teacher.save_pretrained(tmp_path)
    again = load_teacher(tmp_path)
    assert again.shape == teacher.shape and again.shape.encoder.augmentation == teacher.shape.encoder.augmentation
    assert torch.equal(again.sample(seen, 2, 4, _generator(0)), teacher.sample(seen, 2, 4, _generator(0)))


def _config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["shape"]["encoder"].update(fields)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lidar": 1}, "does not describe a flow_teacher.*lidar"),
        ({"num_points": -3}, "num_points: got -3"),
        ({"augmentation": {"blur": 1}}, "does not describe a flow_teacher.*blur"),
        ({"state_names": ["tool_z_m"]}, "encoder.state_names: got 'tool_z_m'"),
        ({"cameras": ["front", "left"]}, "(?s)does not fit its config.*images/left"),
        ({"depth_cameras": []}, "(?s)does not fit its config.*depth"),
        ({"channels": 32}, "(?s)does not fit its config.*size mismatch"),
    ],
)
def test_a_broken_description_is_refused(seeing: FlowTeacher, tmp_path: Path, fields: dict, message: str) -> None:
    seeing.save_pretrained(tmp_path)
    _config(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path)


@pytest.mark.parametrize("name", ["depth_low", "points_high"])
def test_a_policy_without_statistics_of_what_it_sees_is_refused(seeing: FlowTeacher, seen, tmp_path: Path, name: str) -> None:
    getattr(seeing.normaliser, name).fill_(torch.nan)
    for use in (lambda: seeing.encode(seen), lambda: seeing.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=rf"\['{name}'\] are not finite"):
            use()


def test_weights_of_an_encoder_are_taken_from_a_local_file(make_teacher, seeing, seen: Observation, tmp_path: Path) -> None:
    seeing.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    other = make_teacher(5, encoder=seeing.shape.encoder)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    load_encoder(other, file, parts=("colour", "points"))
    for name, value in other.state_dict().items():
        taken = name.startswith(("encoder.colour.", "encoder.points."))
        assert torch.equal(value, seeing.state_dict()[name] if taken else before[name]), name
    load_encoder(other, file)
    assert torch.equal(other.features(seen), seeing.features(seen))
    with pytest.raises(ValueError, match="no such file; expected weights"):
        load_encoder(other, tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"got the part 'lidar', expected some of \['state', 'colour'"):
        load_encoder(other, file, parts=("lidar",))
    blind = make_teacher(encoder=EncoderShape(num_points=32, width=16, channels=16))  # its points have no colours
    with pytest.raises(ValueError, match="(?s)its encoder.points is not that of this policy.*size mismatch"):
        load_encoder(blind, file, parts=("points",))
    assert sources_of(blind.shape) == (CLOUD,)
