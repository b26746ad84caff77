"""The training loop: exact resume, finite checks on every process, the same batches for any number of processes.

Needs: a module, its batches and its loss. Not here: which loss, which data.
"""
