"""The task `detour`: grasp a cube, carry it past a pillar on the left or the right, put it down in the goal disc."""

from __future__ import annotations

import numpy as np

from envs.panda.arm import AS_OBJECT, AS_OBSTACLE, FINGER_OPEN_M, panda_mjcf
from envs.panda.base import PandaEnv, last_side, smooth_path
from envs.panda.disturbances import Disturbance
from envs.specs import ActionSpec, Shape, TaskSpec

CUBE_HALF_M = 0.02
PILLAR_XY, PILLAR_RADIUS_M, PILLAR_HEIGHT_M = (0.525, 0.0), 0.04, 0.16
"""Higher than the cube or the tool can go (the action's box ends at 0.14 m), low enough for the wrist to pass over."""
GOAL_XY, GOAL_RADIUS_M = (0.69, 0.0), 0.035
PLACED_Z_M, LIFTED_Z_M = 0.04, 0.045
"""Below the first the cube counts as on the table, above the second as lifted."""
SIDE_Y_M = 0.30
GRASP_Z_M, CARRY_Z_M = 0.02, 0.075

SPEC = TaskSpec(
    name="detour",
    summary="Grasp a cube, carry it past the pillar on either side and put it down in the goal disc behind.",
    state_names=("tool_x_m", "tool_y_m", "tool_z_m", "finger_m", "cube_x_m", "cube_y_m", "cube_z_m"),
    action=ActionSpec(
        names=("x_m", "y_m", "z_m", "gripper_m"),
        low=(0.30, -0.24, 0.015, 0.0),
        high=(0.74, 0.24, 0.14, FINGER_OPEN_M),
        # The gripper has two values only: at full weight they would outvote every difference in the path.
        weights=(1.0, 1.0, 1.0, 0.25),
    ),
    modes=("left", "right"),
    start_names=("cube_x_m", "cube_y_m", "tool_x_m", "tool_y_m", "tool_z_m"),
    dt_s=0.05,
    max_steps=140,
)


class DetourEnv(PandaEnv):
    """Start [5]: cube x, y, tool x, y, z. State [7]: tool xyz, finger opening, cube xyz. Action [4]: target xyz and
    the opening per finger. All in metres.

    Success: the cube, once lifted and carried past the pillar, rests low inside the goal disc. Failures: ``collision``
    (robot or cube on the pillar), ``dropped`` (back on the table elsewhere), ``off_table``, ``timeout``.
    """

    spec_task = SPEC
    start_low = (0.345, -0.02, 0.345, -0.02, 0.105)
    start_high = (0.375, 0.02, 0.375, 0.02, 0.135)
    object_name = "cube"
    # The state holds the cube, not the pillar or the goal. The cube is pushed before the grasp, farther than the open fingers
    # tolerate (2 cm), yet so little that it stays within about the demonstrated area.
    disturbance = Disturbance(
        moves="object", step=(1, 7), steps=2, low_m=0.022, high_m=0.026,
        summary="The cube is pushed to a side.",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._cube_geom = self.model.geom("cube").id
        self._lifted = False
        self._side = ""
        self._before = np.zeros(2)
        self._low_steps = 0

    def _mjcf(self) -> str:
        scene = (
            f'<body name="cube" pos="0.36 0 {CUBE_HALF_M}"><freejoint name="cube"/>\n'
            f'<geom name="cube" type="box" size="{CUBE_HALF_M} {CUBE_HALF_M} {CUBE_HALF_M}" mass="0.08" condim="4" '
            f'friction="1.0 0.02 0.001" solref="0.004 1" rgba="0.2 0.45 0.8 1" {AS_OBJECT}/></body>\n'
            f'<geom name="pillar" type="cylinder" pos="{PILLAR_XY[0]} {PILLAR_XY[1]} {PILLAR_HEIGHT_M / 2}" '
            f'size="{PILLAR_RADIUS_M} {PILLAR_HEIGHT_M / 2}" rgba="0.8 0.3 0.25 1" {AS_OBSTACLE}/>\n'
            f'<geom name="goal" type="cylinder" pos="{GOAL_XY[0]} {GOAL_XY[1]} 0.0005" size="{GOAL_RADIUS_M} 0.0005" '
            'rgba="0.35 0.7 0.4 1" contype="0" conaffinity="0"/>\n'
        )
        return panda_mjcf(SPEC.name, scene)

    def _forbidden_pairs(self) -> list[tuple[list[int], list[int]]]:
        return [([*self._robot_geoms(), *self._geoms("cube")], self._geoms("pillar"))]

    def _place(self, start: np.ndarray) -> np.ndarray:
        self._put_object(start[0], start[1], CUBE_HALF_M)
        self._lifted, self._side, self._low_steps = False, "", 0
        self._before = start[:2].copy()
        return start[2:5]

    def _judge(self) -> tuple[bool, str, str]:
        cube, before = self.data.xpos[self._object_body].copy(), self._before
        self._before = cube[:2]
        if before[0] < PILLAR_XY[0] <= cube[0]:  # the last crossing counts if the cube went back
            self._side = "left" if cube[1] > PILLAR_XY[1] else "right"
        if cube[2] < -CUBE_HALF_M or abs(cube[1]) > SIDE_Y_M:
            return False, "off_table", ""
        self._lifted = self._lifted or cube[2] > LIFTED_Z_M
        low = self._lifted and cube[2] < PLACED_Z_M
        self._low_steps = self._low_steps + 1 if low else 0
        in_goal = bool(np.hypot(cube[0] - GOAL_XY[0], cube[1] - GOAL_XY[1]) < GOAL_RADIUS_M)
        held = low and self._fingers_on(self._cube_geom) > 0
        if low and in_goal and self._side and not held:
            return True, "", self._side
        # A cube put down off the goal can still be corrected while it is held; a released one is lost.
        if low and not in_goal and not held and self._low_steps >= 3:
            return False, "dropped", ""
        return False, "", ""

    def _planned_modes(self, path: np.ndarray) -> tuple[str, ...]:
        """The side on which the path was last far enough out for the cube to pass the pillar."""
        return (last_side(path[:, 1] - PILLAR_XY[1], PILLAR_RADIUS_M + CUBE_HALF_M),)

    def plan(self, mode: str, rng: np.random.Generator) -> np.ndarray:
        """Targets `[L, 4]` float32: down, close, an arc that lifts and turns to a side, down, open."""
        self._check_mode(mode)
        sign = 1.0 if mode == "left" else -1.0
        speed = rng.uniform(0.27, 0.36)
        tool, cube = self.tool_position(), self.data.xpos[self._object_body]
        grasp = np.array([cube[0] + rng.uniform(-0.004, 0.004), cube[1] + rng.uniform(-0.004, 0.004), GRASP_Z_M])
        goal = np.array([*(np.array(GOAL_XY) + rng.uniform(-0.01, 0.01, 2)), GRASP_Z_M + 0.002])
        above = np.array([grasp[0], grasp[1], rng.uniform(0.06, 0.08)])
        down = smooth_path(np.stack([tool, above, grasp]), speed, SPEC.dt_s, 0.02)

        wide, carry_z, skew = rng.uniform(0.175, 0.195), CARRY_Z_M + rng.uniform(-0.008, 0.012), rng.uniform(-0.1, 0.1)
        turn = np.linspace(0.0, np.pi, 25)
        # Forward from the first moment. If the two modes began sideways, their average would be to stay, and a policy that
        # averages would dither until chance tipped it to one side, instead of running into the pillar.
        along = turn / np.pi
        aside = np.maximum(np.sin(turn + skew * np.sin(turn)), 0.0)
        arc = np.stack(
            [
                grasp[0] + (goal[0] - grasp[0]) * along,
                (grasp[1] + (goal[1] - grasp[1]) * along) * (1.0 - aside) + sign * wide * aside,
                np.full_like(turn, carry_z),
            ],
            axis=1,
        )
        rise = np.clip(np.minimum(turn / 0.35, (np.pi - turn) / 0.25), 0.0, 1.0)
        arc[:, 2] = GRASP_Z_M + (carry_z - GRASP_Z_M) * rise
        arc[-1, 2] = goal[2]
        carry = smooth_path(arc, speed, SPEC.dt_s, 0.02)

        close, wait, release = rng.integers(4, 7), rng.integers(1, 3), 10
        xyz = np.concatenate([down, np.repeat(grasp[None], close, 0), carry, np.repeat(goal[None], wait + release, 0)])
        gripper = np.zeros(len(xyz))
        gripper[: len(down)] = FINGER_OPEN_M
        gripper[len(xyz) - release :] = FINGER_OPEN_M
        return np.concatenate([xyz, gripper[:, None]], axis=1).astype(np.float32)

    def top_view(self) -> tuple[Shape, ...]:
        return (
            self._start_area(0, "cube"),
            Shape("circle", PILLAR_XY, (PILLAR_RADIUS_M, PILLAR_RADIUS_M), "obstacle", "pillar"),
            Shape("circle", GOAL_XY, (GOAL_RADIUS_M, GOAL_RADIUS_M), "goal", "goal"),
        )
