"""What stages read apart from each other's results: teachers, observations, rollout settings, policies to evaluate.

Needs: the contract in `distill.runtime.stage`. Each has a key, so that a stage depends on exactly the part that it reads.
Not here: writing anything to disk (distill.stages).
"""
