"""Networks of teachers and students: transformer, modality encoders, fusion, augmentation, normalisation, policy folders.

Needs: torch, `envs.specs` and `teachers.contract`.
Not here: training losses and sampling (teachers/*.py, students, distill/objectives).
"""
