"""Distillation and its evaluation: hypotheses, objectives, training, rollouts, latency, fidelity, report, command line."""
