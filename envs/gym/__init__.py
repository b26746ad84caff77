"""Any gymnasium environment as a world: settings, the mapping to our features, the worker program, the environment, a checker.

Needs: envs/process. The user's own interpreter needs only numpy, gymnasium and the environment itself.
Not here: rollouts (distill/evaluation), demonstrations on disk (envs/demonstrations.py).
"""
