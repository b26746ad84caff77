"""From a module to a traced program and to ONNX, without torch's messages about itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def quiet() -> Iterator[None]:
    """Hides torch's messages about itself during an export: internal deprecations, and operators of missing packages."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # of torch 2.11
            yield
    finally:
        registration.setLevel(before)


def traced(module: nn.Module, examples: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The program of a module for inputs of exactly these shapes; the module in eval mode, on the examples' device."""
    with quiet(), torch.no_grad():
        return torch.export.export(module.eval(), tuple(examples))


def onnx_of(
    module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str] = (), outputs: Sequence[str] | None = None
) -> tuple[bytes, list[str]]:  # fmt: skip
    """An ONNX model for inputs of exactly these shapes, and the names of its inputs, in their order: `inputs`, or made up."""
    names = list(inputs) or [f"input_{index}" for index in range(len(examples))]
    with quiet():
        exported = torch.onnx.export(
            traced(module, examples), (), input_names=names, output_names=outputs, dynamo=True, verbose=False
        )
        assert exported is not None
        model: bytes = exported.model_proto.SerializeToString()
    return model, names
