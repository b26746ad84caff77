"""`flow2one doctor`: what this machine has, what RLBench needs, and how fast a student runs here in every run mode.

Needs: nothing that may be missing; packages are imported by the checks that need them.
Not here: installing or mending anything.
"""
