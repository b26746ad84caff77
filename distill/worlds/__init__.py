"""Where policies are demonstrated and rolled out: the embedded tasks, RLBench, or nowhere (recordings alone).

Needs: `contract.py` says what each world answers; a new world is one file and one line in `WORLDS`. Not here: stages, keys.
"""
