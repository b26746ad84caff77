"""One file per stage: what it depends on, what it does, how its result is read back; and the graphs made of them.

Needs: everything above it. Not here: how a result is shown (distill.report), what the user typed (distill.cli).
"""
