"""Run modes: one policy call as a graph of fixed size, run eagerly, compiled, captured, or by ONNX Runtime or OpenVINO.

Needs: a student or a flow teacher and, by mode, the optional package or compiler that runs it.
Not here: timing, and which mode is the fastest (distill.evaluation, flow2one doctor --speed).
"""
