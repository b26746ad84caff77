"""Cameras: settings and specs, renderers with and without OpenGL, point clouds, and compressed frames on disk.

Needs: the names in `envs.specs`; mujoco, for the renderers only.
Not here: a task's scene (envs/panda), and how networks encode images (teachers/networks).
"""
