"""One file per stage: what it depends on, what it does, and how its result is read back.

Needs: everything above it. Not here: how a result is presented (distill.report), command-line arguments (distill.cli).
"""
