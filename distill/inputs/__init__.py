"""What stages read beside each other's results: teachers, observations, rollout settings, policies to measure.

Needs: the contract in `distill.runtime.stage`. Each has a key, so that a stage depends on exactly the part that it reads.
Not here: making anything on disk (distill.stages).
"""
