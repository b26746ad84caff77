"""RLBench as a world: its specs, the program that runs it in another interpreter, its views, demonstrations and starts.

Needs: `envs.process`; RLBench itself only in `program.py`. Not here: rollouts of policies (distill.worlds).
"""
