"""What stages share while they run: the context, the contracts of stages and their inputs, and running what is missing.

Needs: the store on disk, accelerate. Not here: any particular stage (distill.stages), which stages exist (distill.graphs).
"""
