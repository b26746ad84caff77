"""The command line: read the words, check them, start processes, hand over to the graph of stages; doctor and export.

Needs: everything. Not here: work that a Python caller would want without a command line.
"""
