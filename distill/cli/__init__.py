"""The command line: parse and check arguments, start processes, run the graph of stages; also doctor and export.

Needs: everything. Not here: anything that is useful from Python without a command line.
"""
