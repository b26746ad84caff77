"""The embedded simulator: a Franka Panda in MuJoCo, one file per task, their disturbances, and recording of their experts.

Needs: mujoco; `envs.cameras`, `envs.demonstrations` and `envs.specs`.
Not here: policies, rollouts (distill/evaluation), other simulators.
"""
