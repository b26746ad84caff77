"""The networks that teachers and students share: transformer, modality encoders, fusion, augmentation, normalisation, folders.

Needs: torch and the feature names of `envs.specs`. Not here: what a network is trained for (teachers/*.py, distill.objectives).
"""
