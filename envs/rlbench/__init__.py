"""RLBench as an environment: specs, the programs in another interpreter, cameras, demonstrations, starts and stored trees.

Needs: `envs.process` and `envs.cameras`; RLBench itself in `program.py` only.
Not here: rollouts of policies (distill.worlds).
"""
