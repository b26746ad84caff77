"""Export of a student: one graph for ONNX Runtime, torch.export and AOTInductor, its parity check, model card, and upload.

Needs: a student and, by format, the optional package that runs it.
Not here: the figures on the card, which are measured in distill.
"""

SCHEMA_VERSION = 1
"""Of ``export.json``; flow2one_runtime reads it."""
