"""What is measured of a policy: rollouts, also in real time, latency, fidelity, diversity, out-of-distribution observations.

Needs: policies behind one face (`policies.py`) and a world's environments. Not here: stages, files, words of the report.
"""
