"""Writes packages that are called pyrep and rlbench and answer as RLBench's do, as far as envs/rlbench/program.py asks.

``python standing_in.py FOLDER``: no simulator. The gripper jumps to where it is sent, the task is solved within 3 cm of a goal
that numpy's global generator places, and what lies outside of the workspace raises as RLBench does. It shows that the program
asks in the right order and names what is raised; that RLBench is as it takes it to be, only RLBench shows. In variation 1 the
colour of an image is how often a camera drew. Objects: ``target`` at the goal, turned by a quarter; ``tool`` at the gripper;
``fuse``, too, until it is removed below 1.2 m.
"""

from __future__ import annotations

import sys
from pathlib import Path

FILES = {
    "pyrep/__init__.py": '__version__ = "4.1.0.3"',
    "pyrep/const.py": "from enum import Enum\nclass RenderMode(Enum):\n    OPENGL = 0\n    OPENGL3 = 1",
    "pyrep/errors.py": "class ConfigurationPathError(Exception): pass\nclass IKError(Exception): pass",
    "rlbench/__init__.py": '__version__ = "1.2.0"',
    "rlbench/backend/__init__.py": "",
    "rlbench/backend/exceptions.py": "class InvalidActionError(Exception): pass\nclass TaskEnvironmentError(Exception): pass",
    "rlbench/backend/waypoints.py": """
class Point:
    def __init__(self, ignore_collisions): self._ignore_collisions = ignore_collisions
    def get_path(self, ignore_collisions=False): return self
class PredefinedPath(Point):
    def get_path(self, ignore_collisions=False): return self
""",
    "rlbench/action_modes/__init__.py": "",
    "rlbench/action_modes/action_mode.py": """
class MoveArmThenGripper:
    def __init__(self, arm_action_mode, gripper_action_mode):
        self.arm_action_mode, self.gripper_action_mode = arm_action_mode, gripper_action_mode
""",
    "rlbench/action_modes/arm_action_modes.py": """
import numpy as np
from pyrep.errors import ConfigurationPathError, IKError
from rlbench.backend.exceptions import InvalidActionError
class EndEffectorPoseViaPlanning:
    size = 7
    def __init__(self, absolute_mode=True, frame=None, collision_checking=False):
        self._collision_checking = collision_checking
    def action(self, scene, action):
        if not np.isclose(np.linalg.norm(action[3:]), 1.0):
            raise InvalidActionError("Action contained non unit quaternion!")
        if np.abs(action[:2]).max() > 0.9:
            raise InvalidActionError("outside of workspace")
        try:
            if action[2] < 0.76:
                raise ConfigurationPathError("no path")
        except ConfigurationPathError as error:
            raise InvalidActionError("A path could not be found.") from error
        scene.pose = np.array(action)
        scene.avoided.append(self._collision_checking)
class EndEffectorPoseViaIK(EndEffectorPoseViaPlanning):
    def action(self, scene, action):
        try:
            if np.linalg.norm(scene.pose[:3] - action[:3]) > 0.2:
                raise IKError("too far")
        except IKError as error:
            raise InvalidActionError("Could not perform IK") from error
        scene.pose = np.array(action)
class JointPosition:
    size = 7
    def __init__(self, absolute_mode=True): pass
    def action(self, scene, action):
        scene.held += 1
        scene.joints = np.array(action)
""",
    "rlbench/action_modes/gripper_action_modes.py": "class Discrete: pass",
    "rlbench/observation_config.py": """
class CameraConfig:
    def __init__(self, rgb=True, depth=True, point_cloud=True, mask=True, image_size=(128, 128), render_mode=None,
                 depth_in_meters=False):
        self.__dict__.update(rgb=rgb, depth=depth, image_size=image_size, depth_in_meters=depth_in_meters)
class ObservationConfig:
    def __init__(self, joint_forces=True, gripper_joint_positions=False, task_low_dim_state=False, **cameras):
        self.__dict__.update(cameras)
""",
    "rlbench/demo.py": """
import numpy as np
class Demo:
    def __init__(self, observations, random_seed=None, num_reset_attempts=None):
        self._observations, self.random_seed, self.num_reset_attempts = observations, random_seed, num_reset_attempts
    def __len__(self): return len(self._observations)
    def __getitem__(self, i): return self._observations[i]
    def restore_state(self): np.random.set_state(self.random_seed)
""",
    "rlbench/utils.py": "def name_to_task_class(name):\n    return {'reach_target': name}[name]",
    "rlbench/backend/scene.py": """
import numpy as np
from rlbench.backend.waypoints import Point, PredefinedPath
from rlbench.demo import Demo
CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
class Observation: pass
class Thing:
    def __init__(self, name, scene): self.name, self.scene = name, scene
    def get_name(self): return self.name
    def still_exists(self): return self.name != "fuse" or self.scene.pose[2] > 1.2
    def get_pose(self):
        assert self.still_exists()
        return np.array([*self.scene.goal, 0, 0, 0.5**0.5, 0.5**0.5]) if self.name == "target" else self.scene.pose
class Model:
    def __init__(self, scene): self.scene = scene
    def get_base(self): return self
    def get_objects_in_tree(self, exclude_base=True): return [Thing(name, self.scene) for name in ("fuse", "target", "tool")]
class Scene:
    pose, joints, opened = np.array([0.28, 0, 1.4, 0, 1, 0, 0.0]), np.zeros(7), 1
    held, renders, variation, _attempts = 0, 0, 0, 0
    def __init__(self, config): self.config, self.avoided = config, []
    def _demo_record_step(self, frames, record, func):
        if record: frames.append(self.get_observation())
        if func is not None: func(self.get_observation())
    def get_demo(self, record=True, callable_each_step=None, randomly_place=True):
        if self.goal[0] > 0.38: raise ValueError("Could not get a path for waypoint 0.")
        frames = [self.get_observation()]
        for share in np.linspace(0, 1, 7)[1:]:
            point = PredefinedPath(False) if share < 0.3 else Point(ignore_collisions=share < 0.6)
            point.get_path()
            self.pose = np.concatenate([Scene.pose[:3] + share * (self.goal - Scene.pose[:3]), Scene.pose[3:]])
            self.opened = float(share < 0.8)
            self._demo_record_step(frames, record, callable_each_step)
        demo = Demo(frames)
        demo.num_reset_attempts = self._attempts + 1
        return demo
    def get_observation(self):
        made = Observation()
        made.joint_positions, made.joint_velocities = self.joints, np.ones(7)
        made.gripper_pose, made.gripper_open = self.pose, self.opened
        made.gripper_joint_positions = np.array([0.04, 0.04]) * self.opened
        made.misc = {"joint_poses": [np.array([-0.27, 0, 1.083, 0, 0, 0, 1.0])] * 7, "variation_index": self.variation}
        for camera in CAMERAS:
            wanted = getattr(self.config, camera + "_camera")
            width, height = wanted.image_size
            self.renders += bool(wanted.rgb or wanted.depth)
            colour = self.renders if self.variation else 7
            rgb, depth = np.full((height, width, 3), colour, np.uint8), np.full((height, width), 0.9, np.float32)
            rgb[-1, -1] += 1  # cameras that see the same everywhere are taken for some without a renderer
            setattr(made, camera + "_rgb", rgb if wanted.rgb else None)
            setattr(made, camera + "_depth", depth if wanted.depth else None)
            pose = np.diag([1.0, -1, -1, 1])
            pose[:3, 3] = (0.3, 0.0, 1.9)
            made.misc[camera + "_camera_extrinsics"] = pose
            made.misc[camera + "_camera_intrinsics"] = np.array([[-20.0, 0, width / 2], [0, -20, height / 2], [0, 0, 1]])
        return made
""",
    "rlbench/environment.py": """
import numpy as np
from rlbench.backend.exceptions import TaskEnvironmentError
from rlbench.backend.scene import Model, Scene
class Environment:
    def __init__(self, action_mode, obs_config=None, headless=False):
        assert headless
        self.mode, self.config = action_mode, obs_config
    def launch(self): print("CoppeliaSim is chatting", flush=True)
    def get_task(self, task): return Task(self.mode, self.config)
class Task:
    def __init__(self, mode, config):
        self._scene, self.mode = Scene(config), mode
        self._task = Model(self._scene)
    def variation_count(self): return 2
    def set_variation(self, number):
        if number >= 2: raise TaskEnvironmentError("only 2 variations")
        self._scene.variation = number
    def reset(self, demo=None):
        scene = self._scene
        scene.pose, scene.joints, scene.held, scene.opened = Scene.pose.copy(), np.zeros(7), 0, 1
        tries = demo.num_reset_attempts if demo is not None and demo.num_reset_attempts else None
        scene._attempts = 0
        while True:
            scene.goal = np.array([0.3, 0.0, 1.0]) + np.random.uniform(-0.1, 0.1, 3)
            scene._attempts += 1
            if scene._attempts == tries or (tries is None and scene.goal[1] > 0): break
        scene._attempts -= tries is None
        told = ["reach it", "variation %d" % scene.variation, "avoided %s" % scene.avoided, "renders %d" % scene.renders]
        return told, self.get_observation()
    def reset_to_demo(self, demo):
        demo.restore_state()
        self.set_variation(demo._observations[0].misc["variation_index"])
        return self.reset(demo)
    def step(self, action):
        self.mode.arm_action_mode.action(self._scene, action[:7])
        done = bool(np.linalg.norm(self._scene.pose[:3] - self._scene.goal) < 0.03)
        return self.get_observation(), float(done), done
    def get_observation(self): return self._scene.get_observation()
    def get_demos(self, amount, live_demos=False, max_attempts=10):
        assert live_demos and amount == 1 and max_attempts == 1
        state = np.random.get_state()
        self.reset()
        try:
            demo = self._scene.get_demo(callable_each_step=None)
        except Exception:
            raise RuntimeError("Could not collect demos. Maybe a problem with the task?") from None
        demo.random_seed = state
        return [demo]
""",
}


def main(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
