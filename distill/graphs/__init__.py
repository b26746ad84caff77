"""Which stages a command has: a run, a conversion and a comparison are three graphs of the same stages.

Needs: the config, and what the command line opened. Pure functions: nothing is read but the folders of named teachers.
Not here: doing the stages (distill.runtime.execution), what a stage does (distill.stages).
"""
