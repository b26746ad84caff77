"""A Franka Panda on a table as MJCF text, and the inverse kinematics of its downward tool."""

from __future__ import annotations

import math
from functools import lru_cache

import mujoco
import numpy as np

PHYSICS_DT_S = 0.002
FINGER_OPEN_M = 0.04
HOME_Q = np.array([0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785])
JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
TOOL_DOWN = np.diag([1.0, -1.0, -1.0])
"""The tool's axes when the hand points straight down: fingers open along the base's y."""

# MuJoCo's contype (what a geom is) and conaffinity (what it collides with). Arm links collide with obstacles only, and the
# robot never with itself: few pairs, fast physics.
TABLE, OBSTACLE, OBJECT = 1, 2, 4
AS_TABLE = f'contype="{TABLE}" conaffinity="0"'
AS_OBSTACLE = f'contype="{OBSTACLE}" conaffinity="0"'
AS_OBJECT = f'contype="{OBJECT}" conaffinity="{TABLE | OBSTACLE}"'
AS_ARM = f'contype="0" conaffinity="{OBSTACLE}"'
AS_HAND = f'contype="0" conaffinity="{TABLE | OBSTACLE | OBJECT}"'

# Per link: position in its parent [m], rotation about x [quarter turns], capsule (two ends, radius) [m], mass [kg].
_LINKS = (
    ("0 0 0.333", 0, "0 0 -0.2 0 0 -0.03", 0.065, 3.0),
    ("0 0 0", -1, "0 0 0 0 -0.2 0", 0.06, 3.0),
    ("0 -0.316 0", 1, "0 0 -0.1 0.05 0 -0.01", 0.06, 2.5),
    ("0.0825 0 0", 1, "0 0 0 -0.07 0.09 0", 0.06, 2.5),
    ("-0.0825 0.384 0", -1, "0 0 -0.25 0 0 -0.03", 0.055, 2.5),
    ("0 0 0", 1, "0 0 0 0.07 0 0", 0.05, 1.5),
    ("0.088 0 0", 1, "0 0 0 0 0 0.07", 0.045, 0.7),
)
# kv / kp is the time by which a joint trails its target: about 30 ms, so that the tool follows rounded corners.
_SERVO_KP = (4000, 4000, 3000, 3000, 800, 800, 400)
_SERVO_KV = (130, 130, 90, 90, 20, 20, 10)
_SERVO_FORCE = (150, 150, 150, 150, 40, 40, 40)


def panda_mjcf(name: str, scene: str, *, hand: str = "", gripper: bool = True) -> str:
    """MJCF text of a Panda at the origin of a table top at z = 0, x forward, y left.

    name: the model's name. scene: MJCF bodies and geoms of the task, in the base frame. hand: further geoms fixed to
    the hand, whose z axis points out of the flange. gripper: two driven fingers; False: the same fingers fixed and closed.
    """
    fingers, servos = "", ""
    for side, sign in (("left", 1), ("right", -1)):
        geom = (
            f'<geom name="finger_{side}" type="box" size="0.01 0.007 0.0275" pos="0 {sign * 0.007} 0.0275" mass="0.03" '
            f'rgba="0.25 0.25 0.28 1" friction="1.5 0.02 0.001" condim="4" solref="0.004 1" {AS_HAND}/>'
        )
        joint = (
            f'<joint name="finger_{side}" type="slide" axis="0 {sign} 0" range="0 {FINGER_OPEN_M}" armature="0.1" '
            'damping="120"/>'
            if gripper
            else ""
        )
        fingers += f'<body name="finger_{side}" pos="0 0 0.0584" gravcomp="1">{joint}{geom}</body>\n'
        if gripper:
            servos += (
                f'<position name="finger_{side}" joint="finger_{side}" kp="4000" kv="40" forcerange="-30 30" '
                f'ctrlrange="0 {FINGER_OPEN_M}"/>\n'
            )
    tool = (
        f'<body name="hand" pos="0 0 0.107" euler="0 0 {-math.pi / 4}" gravcomp="1">\n'
        f'<geom name="hand" type="capsule" fromto="0 -0.07 0.034 0 0.07 0.034" size="0.032" mass="0.7" '
        f'rgba="0.9 0.9 0.92 1" {AS_HAND}/>\n'
        f'<site name="tool" pos="0 0 0.1034" size="0.004" group="4"/>\n'
        # in front of the hand, looking past the finger tips and slightly backwards; up in its image is the base's x
        f'<camera name="wrist" pos="0.075 0 0.02" xyaxes="0 1 0 0.97 0 0.25" fovy="75"/>\n{hand}{fingers}</body>\n'
    )
    arm = tool
    for index in reversed(range(7)):
        pos, turn, fromto, radius, mass = _LINKS[index]
        shade = "0.93 0.93 0.95 1" if index % 2 else "0.82 0.84 0.88 1"
        arm = (
            f'<body name="link{index + 1}" pos="{pos}" euler="{turn * math.pi / 2} 0 0" gravcomp="1">\n'
            f'<joint name="joint{index + 1}" axis="0 0 1" range="{JOINT_LOW[index]} {JOINT_HIGH[index]}" '
            f'armature="0.1" damping="1"/>\n'
            f'<geom name="link{index + 1}" type="capsule" fromto="{fromto}" size="{radius}" mass="{mass}" '
            f'rgba="{shade}" {AS_ARM}/>\n{arm}</body>\n'
        )
    arm_servos = "".join(
        f'<position name="joint{i + 1}" joint="joint{i + 1}" kp="{_SERVO_KP[i]}" kv="{_SERVO_KV[i]}" '
        f'forcerange="-{_SERVO_FORCE[i]} {_SERVO_FORCE[i]}"/>\n'
        for i in range(7)
    )
    return f"""<mujoco model="{name}">
<compiler angle="radian" eulerseq="xyz" autolimits="true"/>
<option timestep="{PHYSICS_DT_S}" integrator="implicitfast" cone="elliptic" impratio="5" iterations="30">
  <flag autoreset="disable"/>
</option>
<visual><global offwidth="640" offheight="480"/><headlight ambient="0.45 0.45 0.45" diffuse="0.2 0.2 0.2"
  specular="0 0 0"/></visual>
<worldbody>
<light name="sun" type="directional" pos="0.4 0 2" dir="0.2 0.1 -1" diffuse="0.45 0.45 0.45"
 specular="0.1 0.1 0.1" castshadow="false"/>
<camera name="front" pos="1.15 0 0.6" xyaxes="0 1 0 -0.6 0 0.8" fovy="38"/>
<camera name="overhead" pos="0.52 0 0.95" xyaxes="0 -1 0 1 0 0" fovy="36"/>
<camera name="left" pos="0.5 0.75 0.5" xyaxes="-1 0 0 0 -0.55 0.83" fovy="36"/>
<camera name="right" pos="0.5 -0.75 0.5" xyaxes="1 0 0 0 0.55 0.83" fovy="36"/>
<geom name="table" type="box" pos="0.45 0 -0.02" size="0.65 0.6 0.02" rgba="0.55 0.48 0.4 1" {AS_TABLE}/>
<geom name="base" type="capsule" fromto="-0.04 0 0.06 0 0 0.08" size="0.08" rgba="0.82 0.84 0.88 1"
 contype="0" conaffinity="0"/>
{arm}
{scene}
</worldbody>
<actuator>
{arm_servos}{servos}</actuator>
</mujoco>"""


@lru_cache(maxsize=32)
def compile_model(mjcf: str) -> mujoco.MjModel:
    """The compiled model of an MJCF text, shared by all environments of a process: never write to it."""
    return mujoco.MjModel.from_xml_string(mjcf)


def solve_ik(
    model: mujoco.MjModel,
    scratch: mujoco.MjData,
    start_q: np.ndarray,
    target: np.ndarray,
    *,
    iterations: int = 4,
    tolerance_m: float = 2e-4,
    damping: float = 0.02,
    homing: float = 0.02,
) -> tuple[np.ndarray, float]:
    """Joint angles `[7]` [rad] that bring the tool, pointing down, to `target [3]` [m], and the remaining position error [m].

    Damped least squares from `start_q [7]`; the redundant joint is pulled towards HOME_Q. `scratch` is overwritten.
    """
    site = model.site("tool").id
    q = np.array(start_q, dtype=np.float64)
    jacobian = np.zeros((6, model.nv))
    error = np.zeros(6)
    for round_ in range(iterations + 1):
        scratch.qpos[:7] = q
        mujoco.mj_kinematics(model, scratch)
        error[:3] = target - scratch.site_xpos[site]
        turn = scratch.site_xmat[site].reshape(3, 3) @ TOOL_DOWN.T  # rotation from the target pose to the present one
        error[3:] = 0.5 * (turn[1, 2] - turn[2, 1]), 0.5 * (turn[2, 0] - turn[0, 2]), 0.5 * (turn[0, 1] - turn[1, 0])
        worst = float(np.sqrt(error[:3] @ error[:3]))
        if round_ == iterations or (round_ > 0 and worst < tolerance_m and np.abs(error[3:]).max() < 2e-3):
            break
        mujoco.mj_comPos(model, scratch)
        mujoco.mj_jacSite(model, scratch, jacobian[:3], jacobian[3:], site)
        arm = jacobian[:, :7]
        pull = homing * (HOME_Q - q)
        wanted = np.linalg.solve(arm @ arm.T + damping**2 * np.eye(6), error - arm @ pull)
        q = np.clip(q + pull + arm.T @ wanted, JOINT_LOW, JOINT_HIGH)
    return q, worst
