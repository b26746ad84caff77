"""What a student is trained for: set losses, code shares, the baselines' losses, and the recipes that name them.

Needs: hypothesis sets or demonstrations as batches. Not here: the training loop, the choice of a checkpoint.
"""
