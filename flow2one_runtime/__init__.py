"""Runs exported students: numpy and one of ONNX Runtime, OpenVINO and torch. A distribution of its own, flow2one-runtime.

Needs: a folder that `flow2one export` wrote. Not here: anything of flow2one itself, which need not be installed.
"""

from flow2one_runtime.student import Student

__all__ = ["Student"]
