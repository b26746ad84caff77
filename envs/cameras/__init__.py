"""What cameras see: their settings and frames, renderers with and without OpenGL, point clouds, frames packed on disk.

Needs: the task specs; mujoco for the renderers only. Not here: what a task looks like, how a network encodes an image.
"""
