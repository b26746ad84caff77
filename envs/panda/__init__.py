"""The embedded simulator: a Franka Panda in MuJoCo, one file per task, and what may disturb a task while a policy is at work.

Needs: mujoco; cameras and demonstrations from the rooms above. Not here: policies, rollouts, anything of another simulator.
"""
