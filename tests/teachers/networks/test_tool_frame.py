"""teachers/networks/tool_frame.py: moving the scene moves the plan, for every policy, with cached features and in a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from envs.rlbench.spec import POSE, STATE_NAMES
from envs.specs import ACTION, POINTS, STATE
from students import FlowMapStudent, OneStepStudent
from students.export.graph import StudentGraph
from teachers import TEACHERS, make_teacher
from teachers.contract import FEATURES, Observation
from teachers.flow import FlowTeacher
from teachers.networks.observations import fake_observation
from teachers.networks.pretrained import PretrainedPolicy
from teachers.networks.shapes import EncoderShape, PolicyShape
from teachers.networks.tool_frame import ToolFrame
from teachers.trained import TrainedTeacher

ENCODER = EncoderShape(state_names=POSE, num_points=24, width=24, heads=2, keypoints=2)
P = TypeVar("P", bound=PretrainedPolicy)

MOVE = torch.tensor([0.3, -0.2, 0.1])


def _shape(frame: str = "tool", encoder: EncoderShape | None = ENCODER, steps: int = 2) -> PolicyShape:
    return PolicyShape("rlbench/any", STATE_NAMES, POSE, (1.0,) * 10, 0.15, steps, 8, 16, 1, 2, 4, encoder, frame)


def _ready(policy: P) -> P:
    """With statistics, and weights that make the output depend on everything."""
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    size = {"state": 17, "action": 10, "points": 3}
    policy.normaliser.fit({name: {"min": torch.full((n,), -0.5).numpy(), "max": torch.full((n,), 0.7).numpy()}
                           for name, n in size.items()})  # fmt: skip
    return policy.eval()


def _moved(observation: Observation) -> Observation:
    state, points = observation[STATE].clone(), observation[POINTS].clone()
    state[..., :3] += MOVE
    points[..., :3] += MOVE
    return {STATE: state, POINTS: points}


def _check_equivariance(plan: Tensor, plan_of_moved: Tensor) -> None:
    torch.testing.assert_close(plan_of_moved[..., :3], plan[..., :3] + MOVE, rtol=0, atol=2e-5)
    torch.testing.assert_close(plan_of_moved[..., 3:], plan[..., 3:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_teacher_moves_its_plan_with_the_scene(kind: str) -> None:
    seen = fake_observation(_shape())
    teachers: dict[str, TrainedTeacher] = {}
    for frame in ("tool", "base"):
        torch.manual_seed(0)
        teachers[frame] = _ready(make_teacher(kind, _shape(frame), "", 1.0))
    steps = 5
    noise = torch.randn(2, 3, *teachers["tool"].noise_shape(steps), generator=torch.Generator().manual_seed(1))
    _check_equivariance(*(teachers["tool"].sample_from_noise(each, noise, steps) for each in (seen, _moved(seen))))
    plan, other = (teachers["base"].sample_from_noise(each, noise, steps) for each in (seen, _moved(seen)))
    assert not torch.allclose(other[..., :3], plan[..., :3] + MOVE, atol=1e-3)


def test_students_and_their_graphs_move_their_plans_with_the_scene() -> None:
    seen = fake_observation(_shape(), batch=1)
    one_step = _ready(OneStepStudent(_shape(), latent_size=4, codes=6, shares=True))
    latents = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plan = one_step(seen, latents)
        _check_equivariance(plan, one_step(_moved(seen), latents))
        torch.testing.assert_close(StudentGraph(one_step)(seen, latents), plan)
        flow_map = _ready(FlowMapStudent(_shape()))
        noise = torch.randn(1, 5, *flow_map.latent_shape, generator=torch.Generator().manual_seed(2))
        for steps in (1, 2):
            _check_equivariance(*(flow_map(each, noise, num_steps=steps) for each in (seen, _moved(seen))))


def test_it_is_the_base_frame_policy_of_relative_numbers() -> None:
    """The flow in the tool frame, step by step, is the flow of a base-frame policy that is given relative inputs."""
    shape = _shape()
    torch.manual_seed(0)
    tool = _ready(FlowTeacher(shape))
    base = _ready(FlowTeacher(_shape("base")))
    base.load_state_dict(tool.state_dict())
    frame, seen = ToolFrame(shape), fake_observation(shape)
    origin = frame.origin(seen[STATE])
    torch.testing.assert_close(origin, seen[STATE][:, -1, :3])
    noise = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(3))
    for solver in FlowTeacher.SOLVERS:
        tool.use_solver(solver)
        base.use_solver(solver)
        relative = base.sample_from_noise(frame.observation(seen, origin), noise, 4)
        expected = relative.clone()
        expected[..., :3] += origin[:, None, None]
        torch.testing.assert_close(tool.sample_from_noise(seen, noise, 4), expected, rtol=0, atol=2e-5)
    # the training losses are the same, too
    action = torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(4))
    draws = tool.training_draws(2, torch.Generator().manual_seed(6))
    expected = base(frame.observation(seen, origin), frame.chunk(action, origin), *draws)
    torch.testing.assert_close(tool(seen, action, *draws), expected, rtol=1e-4, atol=0)


def test_cached_features_carry_the_origin() -> None:
    teacher, seen = _ready(FlowTeacher(_shape())), fake_observation(_shape())
    features = teacher.features(seen)
    assert features.shape == (2, teacher.feature_size) == (2, 24 + 10)
    torch.testing.assert_close(features[:, -10:-7], seen[STATE][:, -1, :3] / 0.6)
    assert not features[:, -7:].any()
    noise = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        teacher.sample_from_noise({FEATURES: features}, noise, 2), teacher.sample_from_noise(seen, noise, 2)
    )


def test_a_policy_of_the_whole_state_has_the_frame_too() -> None:
    names = ("tool_x_m", "tool_y_m", "cube_x_m", "cube_y_m", "finger_m")
    shape = PolicyShape("any", names, ("x_m", "y_m", "grip"), (1.0,) * 3, 0.1, 1, 8, 16, 1, 2, 8, None, "tool")
    teacher = FlowTeacher(shape)
    teacher.normaliser.fit({name: {"min": torch.full((n,), -1.0).numpy(), "max": torch.full((n,), 1.0).numpy()}
                            for name, n in (("state", 5), ("action", 3))})  # fmt: skip
    state = torch.rand(2, 1, 5, generator=torch.Generator().manual_seed(0))
    moved = state + torch.tensor([0.5, -0.25, 0.5, -0.25, 0.0])
    noise = torch.randn(2, 1, 8, 3, generator=torch.Generator().manual_seed(1))
    plan, other = (teacher.eval().sample_from_noise({STATE: each}, noise, 3) for each in (state, moved))
    torch.testing.assert_close(other, plan + torch.tensor([0.5, -0.25, 0.0]), rtol=0, atol=1e-5)


def test_a_batch_is_relative_to_each_rows_tool() -> None:
    frame, seen = ToolFrame(_shape()), fake_observation(_shape())
    action = torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(0))
    got = frame.batch({**seen, ACTION: action, "seed": torch.arange(2)})
    for row in range(2):
        tool = seen[STATE][row, -1, :3]
        torch.testing.assert_close(got[ACTION][row, :, :3], action[row, :, :3] - tool)
        torch.testing.assert_close(got[POINTS][row, ..., :3], seen[POINTS][row, ..., :3] - tool)
        torch.testing.assert_close(got[STATE][row, :, :3], seen[STATE][row, :, :3] - tool)
        torch.testing.assert_close(got[STATE][row, :, 3:], seen[STATE][row, :, 3:])
    torch.testing.assert_close(got[ACTION][..., 3:], action[..., 3:])
    assert torch.equal(got["seed"], torch.arange(2))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"state_names": ("speed",), "encoder": None}, "the state names no position"),
        ({"action_names": ("speed",), "action_weights": (1.0,)}, "the action names no position"),
        ({"encoder": EncoderShape(state_names=("gripper_open",), num_points=8, width=16, heads=2)}, "does not observe"),
        ({"frame": "hand"}, "expected one of"),
    ],
)
def test_without_a_tool_the_frame_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FlowTeacher(replace(_shape(), **changes))  # type: ignore[arg-type]


def test_the_frame_is_stored_with_the_policy(tmp_path: object) -> None:
    teacher = _ready(FlowTeacher(_shape()))
    teacher.save_pretrained(str(tmp_path))
    assert FlowTeacher.from_pretrained(str(tmp_path)).shape == _shape()
    assert "frame" not in _shape("base").to_json()
