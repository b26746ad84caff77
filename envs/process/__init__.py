"""Programs in other interpreters: the wire format, the supervised process, its other end, and the worker that restarts it.

Needs: numpy. `wire.py` and `serving.py` import nothing of ours, because they run in any interpreter.
Not here: the programs (envs/rlbench, teachers/adapters).
"""
