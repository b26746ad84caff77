"""The hypothesis sets: the cache on disk, which frames, perturbed copies, the index over the whole cache, nearest neighbours.

Needs: a teacher to draw from. Not here: losses on the sets (distill.objectives), figures of a policy (distill.evaluation).
"""
