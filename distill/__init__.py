"""Distillation and its evaluation: hypotheses, objectives, training, rollouts, latency, fidelity, report, command line.

In Python: `from distill import run, convert, compare, load_student` (distill.api). They are imported when they are used, so
that `import distill` imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.api import compare, convert, load_student, run

__all__ = ["compare", "convert", "load_student", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(import_module("distill.api"), name)
