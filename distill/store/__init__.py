"""Stages on disk: folders written atomically and verified when opened, and their stage cost.

Needs: nothing of ours. Not here: the content of the files.
"""
