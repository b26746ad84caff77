"""The work itself: hypothesis cache, objectives, training, rollouts, latency, fidelity, report, command line."""
