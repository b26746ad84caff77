"""What stages share while they run: the context, the contract of a stage and of what it reads, and doing what is missing.

Needs: the store on disk, accelerate. Not here: any particular stage (distill.stages), which stages there are (distill.graphs).
"""
