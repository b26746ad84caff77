"""A program in another interpreter: the wire format, the worker that is watched and killed for sure, and its other end.

Needs: numpy. `wire.py` and `serving.py` import nothing of ours, as they run anywhere. Not here: what the program does.
"""
