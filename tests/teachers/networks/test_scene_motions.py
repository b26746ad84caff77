"""teachers/networks/scene_motions.py: scenes move as rigid bodies, and every part of a batch by the same motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from envs.poses import pose_layout
from envs.rlbench.spec import POSE, STATE_NAMES
from envs.specs import POINTS, STATE
from teachers.networks.scene_motions import NUMBERS, MotionRange, SceneMotions, check_motions, draw_motions, move_batch
from teachers.networks.shapes import EncoderShape, PolicyShape

RANGES = MotionRange(translate_m=0.2, rotate_deg=30, stretch=0.2, displace_m=0.05)


def _shape(**changes: object) -> PolicyShape:
    encoder = EncoderShape(state_names=POSE, num_points=16, point_colours=True, width=16, heads=2)
    base = PolicyShape("rlbench/any", STATE_NAMES, POSE, (1.0,) * 10, 0.15, 1, 8, 16, 1, 2, 8, encoder)
    return replace(base, **changes)  # type: ignore[arg-type]


def _motions(batch: int = 3, seed: int = 0, stretch: float = 0.0) -> SceneMotions:
    uniform = torch.rand(batch, NUMBERS, generator=torch.Generator().manual_seed(seed))
    return draw_motions(replace(RANGES, stretch=stretch), uniform)


def _poses(rng: np.random.Generator, *size: int) -> tuple[np.ndarray, np.ndarray]:
    """Homogeneous matrices `[.., 4, 4]`, and the same poses by the nine numbers of `POSE` without the gripper."""
    matrix = np.tile(np.eye(4), (*size, 1, 1))
    count = int(np.prod(size))
    matrix[..., :3, :3] = Rotation.random(count, random_state=1).as_matrix().reshape(*size, 3, 3)
    matrix[..., :3, 3] = rng.normal(size=(*size, 3))
    return matrix, np.concatenate([matrix[..., :3, 3], matrix[..., :3, 0], matrix[..., :3, 1]], axis=-1)


def test_poses_move_as_products_of_homogeneous_matrices() -> None:
    rng, motions = np.random.default_rng(0), _motions()
    matrix, numbers = _poses(rng, 3, 5)
    values = torch.from_numpy(np.concatenate([numbers, rng.uniform(size=(3, 5, 1))], axis=-1))
    given = (each.double() for each in (motions.rotation_B33, motions.translation_B3, motions.stretch_B33))
    moved = SceneMotions(*given, motions.displacement_B3).move_vector(values, pose_layout(POSE), torch.zeros(3, 3).double())
    for row in range(3):
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = motions.rotation_B33[row], motions.translation_B3[row]
        expected = motion @ matrix[row]
        np.testing.assert_allclose(moved[row, :, :3], expected[:, :3, 3], atol=1e-6)
        np.testing.assert_allclose(moved[row, :, 3:6], expected[:, :3, 0], atol=1e-6)
        np.testing.assert_allclose(moved[row, :, 6:9], expected[:, :3, 1], atol=1e-6)
    assert torch.equal(moved[..., 9], values[..., 9])


def test_motions_stay_within_their_range_and_turn_about_the_vertical_axis() -> None:
    motions = draw_motions(RANGES, torch.tensor([[0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.5, 1.0, 0.5, 1.0, 0.0, 0.5],
                                                  [0.5] * 13]))  # fmt: skip
    torch.testing.assert_close(motions.displacement_B3, torch.tensor([[0.05, -0.05, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(motions.translation_B3, torch.tensor([[-0.2, 0.0, 0.2], [0.0, 0.0, 0.0]]))
    expected = torch.from_numpy(Rotation.from_euler("z", 30, degrees=True).as_matrix()).float()
    torch.testing.assert_close(motions.rotation_B33[0], expected)
    torch.testing.assert_close(motions.rotation_B33[1], torch.eye(3))
    torch.testing.assert_close(motions.stretch_B33[0], torch.tensor([[1.2, 0, 0.1], [0, 1, 0], [0.1, 0, 0.8]]))
    torch.testing.assert_close(motions.stretch_B33[1], torch.eye(3))


def test_a_stretch_leaves_the_tool_and_what_it_touches_where_they_are() -> None:
    motions, tool = _motions(stretch=0.2), torch.tensor([[0.4, 0.1, 0.3]] * 3)
    still = replace(motions, rotation_B33=torch.eye(3).expand(3, 3, 3), translation_B3=torch.zeros(3, 3))
    positions = torch.stack([tool, tool + torch.tensor([0.1, 0.0, 0.0])], dim=1)
    moved = still.move(positions, tool)
    torch.testing.assert_close(moved[:, 0], tool)
    torch.testing.assert_close(moved[:, 1], tool + 0.1 * still.stretch_B33[:, 0])
    # with a rotation and a translation the tool goes where they take it
    everything = motions.move(positions, tool)
    torch.testing.assert_close(everything[:, 0], (motions.rotation_B33 @ tool[..., None])[..., 0] + motions.translation_B3)


def test_a_batch_moves_as_a_whole_and_distances_within_it_stay() -> None:
    shape, rng = _shape(), torch.Generator().manual_seed(1)
    batch = {
        STATE: torch.randn(3, 1, 17, generator=rng), POINTS: torch.rand(3, 1, 16, 6, generator=rng),
        "action": torch.randn(3, 8, 10, generator=rng), "seed": torch.arange(3),
    }  # fmt: skip
    before = {name: value.clone() for name, value in batch.items()}
    moved = move_batch(batch, shape, replace(_motions(), displacement_B3=torch.zeros(3, 3)))
    tool, gap = STATE, lambda rows: rows[POINTS][..., :3] - rows[tool][:, :, None, :3]
    torch.testing.assert_close(gap(moved).norm(dim=-1), gap(batch).norm(dim=-1))
    reach = lambda rows: (rows["action"][..., :3] - rows[tool][..., :3]).norm(dim=-1)  # noqa: E731
    torch.testing.assert_close(reach(moved), reach(batch))
    assert not torch.allclose(moved[POINTS], batch[POINTS])
    # colours, joints, gripper and everything that is no part of the scene stay; the given batch is not changed
    assert torch.equal(moved[POINTS][..., 3:], batch[POINTS][..., 3:])
    assert torch.equal(moved[STATE][..., 9:], batch[STATE][..., 9:]) and torch.equal(moved["seed"], batch["seed"])
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_only_the_tool_is_displaced() -> None:
    shape, rng = _shape(), torch.Generator().manual_seed(1)
    batch = {STATE: torch.randn(3, 2, 17, generator=rng), POINTS: torch.rand(3, 2, 16, 6, generator=rng),
             "action": torch.randn(3, 8, 10, generator=rng)}  # fmt: skip
    motions = draw_motions(MotionRange(displace_m=0.05), torch.rand(3, NUMBERS, generator=rng))
    moved = move_batch(batch, shape, motions)
    torch.testing.assert_close(moved[POINTS], batch[POINTS])
    torch.testing.assert_close(moved["action"], batch["action"])
    torch.testing.assert_close(moved[STATE][..., 3:], batch[STATE][..., 3:])
    step = moved[STATE][..., :3] - batch[STATE][..., :3]
    torch.testing.assert_close(step[:, 0], step[:, 1])  # velocities stay
    torch.testing.assert_close(step[:, 0], motions.displacement_B3)
    assert 0 < step.abs().max() <= 0.05


def test_a_state_without_height_turns_in_the_plane() -> None:
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])
    motions = SceneMotions(turn, torch.tensor([[0.5, 0.0, 9.0]]), torch.eye(3)[None], torch.zeros(1, 3))
    layout = pose_layout(("tool_x_m", "tool_y_m", "speed"))
    moved = motions.move_vector(torch.tensor([[[1.0, 2.0, 7.0]]]), layout, torch.zeros(1, 3))
    torch.testing.assert_close(moved, torch.tensor([[[-1.5, 1.0, 7.0]]]))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (_shape(encoder=None), "joint_1_rad"),
        (_shape(encoder=EncoderShape(state_names=("joint_2_rad",), num_points=8, width=16, heads=2)), "joint_2_rad"),
        (_shape(encoder=EncoderShape(state_names=POSE, num_points=8, cameras=("front",), width=16, heads=2)), "front"),
        (_shape(encoder=EncoderShape(state_names=POSE, width=16, heads=2)), "no point cloud"),
        (_shape(action_names=("joint_1_rad",), action_weights=(1.0,)), "joint_1_rad"),
    ],
)
def test_what_cannot_move_with_the_scene_is_refused_by_name(shape: PolicyShape, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_motions(RANGES, shape)
    check_motions(MotionRange(), shape)


def test_a_state_that_shows_the_scene_needs_no_cloud_and_moves_with_its_objects() -> None:
    names = (*STATE_NAMES, *(f"lid_{part}" for part in POSE[:9]))
    observed = (*POSE, *names[17:])
    shape = _shape(state_names=names, encoder=EncoderShape(state_names=observed, width=16, heads=2))
    check_motions(RANGES, shape, state_shows_scene=True)
    with pytest.raises(ValueError, match="no point cloud"):
        check_motions(RANGES, shape)
    with pytest.raises(ValueError, match="joint_1_rad"):  # a plain state holds the joints
        check_motions(RANGES, replace(shape, encoder=None), state_shows_scene=True)
    # the grasp, seen from the lid, stays the same in a scene that is rotated
    matrix, numbers = _poses(np.random.default_rng(2), 3, 2)
    state = torch.zeros(3, 1, 26).double()
    state[:, 0, 17:], state[:, 0, :3] = torch.from_numpy(numbers[:, 0]), torch.tensor([0.4, 0.1, 0.3]).double()
    action = torch.from_numpy(np.concatenate([numbers[:, 1:], np.ones((3, 1, 1))], axis=-1))
    motions = _motions()
    moved = move_batch({STATE: state, "action": action}, shape, SceneMotions(
        motions.rotation_B33.double(), motions.translation_B3.double(), motions.stretch_B33.double(), torch.zeros(3, 3)
    ))  # fmt: skip
    for row in range(3):
        lid, grasp = (_matrix(values) for values in (moved[STATE][row, 0, 17:].numpy(), moved["action"][row, 0, :9].numpy()))
        expected = np.linalg.inv(matrix[row, 0]) @ matrix[row, 1]
        np.testing.assert_allclose(np.linalg.inv(lid) @ grasp, expected, atol=1e-5)
        assert np.abs(lid - matrix[row, 0]).max() > 0.01


def _matrix(numbers: np.ndarray) -> np.ndarray:
    """The homogeneous matrix of nine numbers."""
    made = np.eye(4)
    made[:3, 0], made[:3, 1], made[:3, 3] = numbers[3:6], numbers[6:9], numbers[:3]
    made[:3, 2] = np.cross(made[:3, 0], made[:3, 1])
    return made


def test_ranges_are_checked() -> None:
    for wrong in ({"translate_m": -0.1}, {"rotate_deg": 181.0}, {"translate_m": float("nan")}, {"displace_m": -1.0}):
        with pytest.raises(ValueError, match="expected at least 0"):
            MotionRange(**wrong)
