"""Stages on disk: folders that are there whole or not at all, verified when opened, with what they cost.

Needs: nothing of ours. Not here: what is in the files.
"""
