"""External policies as teachers: an adapter file in a process of its own, and the adapter for LeRobot's policies.

Needs: `envs.process`. `program.py`, `seeded.py` and `lerobot.py` run in the user's interpreter and import nothing of ours.
Not here: policies that flow2one trains.
"""
