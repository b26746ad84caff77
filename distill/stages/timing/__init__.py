"""The stages that time policies: the latency of every policy, and success by the number of samples a call draws.

Needs: evaluated policies. Not here: how a call is timed (distill.evaluation).
"""
