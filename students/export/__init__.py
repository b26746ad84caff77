"""A student as it travels: one graph for ONNX Runtime, torch.export and AOTInductor, its parity check, model card, upload.

Needs: a student and, by format, the optional package that runs it. Not here: what was measured of it (distill.stages).
"""
