"""The hypothesis sets: cache on disk, choice of frames, perturbed copies, index over the whole cache, nearest neighbours.

Needs: a teacher to sample from. Not here: losses on the sets (distill.objectives), figures of a policy (distill.evaluation).
"""
