"""What is measured of a policy: rollouts, real-time rollouts, latency, fidelity, diversity, out-of-distribution observations.

Needs: policies with one interface (`policies.py`) and a world's environments. Not here: stages, files, the report's wording.
"""
