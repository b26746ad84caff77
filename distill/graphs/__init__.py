"""Which stages a command has: a run, a conversion and a comparison are three graphs of the same stages.

Needs: the config, and the policies that the command line opened. Pure functions; only folders of named teachers are read.
Not here: running the stages (distill.runtime.execution), what a stage does (distill.stages).
"""
