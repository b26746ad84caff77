"""The run modes: how a graph of a policy call is run. A new mode is one class here and one line in `MODES`."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from students.runtime.tracing import onnx_of, quiet, traced

Array = Any
"""What a mode computes with: a numpy array or a tensor."""

Graph = Callable[..., Sequence[Array]]
"""A module as a mode runs it: its inputs, in their order, to its outputs."""

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Mode(ABC):
    """How graphs run. precision: of encoder and trunk; inputs and outputs are float32 in every mode."""

    precision: Precision = "float32"
    unrolls: ClassVar[bool] = False
    """Whether a teacher's solver steps are recorded as one graph; the others run one graph per step."""

    @abstractmethod
    def missing(self, device: torch.device) -> str:
        """Why it cannot run on this machine for a policy on this device, in a few words; "" where it can."""

    @abstractmethod
    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        """The module, on its device, for inputs of exactly these shapes. Raises RuntimeError where a compiler fails."""

    @abstractmethod
    def array(self, value: np.ndarray, device: torch.device) -> Array:
        """A float32 array of the host as an input."""

    def host(self, value: Array) -> np.ndarray:
        """An output as an array of the host, which no later call changes."""
        return np.asarray(value)


class TorchMode(Mode):
    """A mode whose arrays are tensors on the policy's device."""

    def array(self, value: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(value).to(device)

    def host(self, value: Tensor) -> np.ndarray:
        found: np.ndarray = value.cpu().numpy()
        return found


class PyTorch(TorchMode):
    """The graph in PyTorch, as it is."""

    def missing(self, device: torch.device) -> str:
        return ""

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        module = in_precision(module, self.precision).eval()

        def call(*inputs: Tensor) -> Sequence[Tensor]:
            with torch.inference_mode():
                found: Sequence[Tensor] = module(*inputs)
                return found

        return call


class Compile(TorchMode):
    """``torch.compile``."""

    def missing(self, device: torch.device) -> str:
        if device.type == "cpu" and (reason := missing_compiler()):
            return reason
        return _missing_bfloat16(device) if self.precision == "bfloat16" else ""

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        compiled: Graph = torch.compile(in_precision(module, self.precision).eval(), fullgraph=True, dynamic=False)

        def call(*inputs: Tensor) -> Sequence[Tensor]:
            with torch.inference_mode():
                return compiled(*inputs)

        with quiet():
            call(*examples)
        return call


class CudaGraph(TorchMode):
    """Kernels recorded once and launched together, from fixed buffers: one launch and one synchronisation a call."""

    unrolls = True

    def missing(self, device: torch.device) -> str:
        return "" if device.type == "cuda" else "needs an NVIDIA GPU"

    def array(self, value: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(value)  # copied into the graph's own buffer

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        module, buffers = in_precision(module, self.precision).eval(), [each.clone() for each in examples]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.inference_mode():  # libraries choose their algorithms before the recording
            for _ in range(3):
                module(*buffers)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(recorded):
            outputs: Sequence[Tensor] = module(*buffers)

        def call(*inputs: Tensor) -> Sequence[Tensor]:
            for buffer, value in zip(buffers, inputs, strict=True):
                buffer.copy_(value, non_blocking=True)
            recorded.replay()
            return outputs

        return call


class AotInductor(TorchMode):
    """``torch.export``, compiled ahead of time by AOTInductor."""

    def missing(self, device: torch.device) -> str:
        return missing_compiler() if device.type == "cpu" else ""

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        program = traced(in_precision(module, self.precision), examples)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "call.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=path)
            loaded: Graph = torch._inductor.aoti_load_package(path)
        return loaded


class NumpyMode(Mode):
    """A mode on the CPU whose arrays are numpy's, on one thread: small networks gain nothing from more."""

    def array(self, value: np.ndarray, device: torch.device) -> np.ndarray:
        return value


class OnnxRuntime(NumpyMode):
    """ONNX Runtime."""

    def missing(self, device: torch.device) -> str:
        return _missing_on_cpu(device, ("onnx", "onnxscript", "onnxruntime"))

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        import onnxruntime

        model, names = onnx_of(module, examples)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


class OpenVino(NumpyMode):
    """OpenVINO. Some processors silently compute in bfloat16 unless the precision is named, so it is."""

    def missing(self, device: torch.device) -> str:
        reason = _missing_on_cpu(device, ("onnx", "onnxscript", "openvino"))
        return reason or (_missing_bfloat16(device) if self.precision == "bfloat16" else "")

    def graph(self, module: nn.Module, examples: Sequence[Tensor]) -> Graph:
        import openvino

        model, names = onnx_of(module, examples)
        settings = {"INFERENCE_PRECISION_HINT": "f32" if self.precision == "float32" else "bf16", "INFERENCE_NUM_THREADS": 1}
        request = openvino.compile_model(openvino.Core().read_model(model), "CPU", settings).create_infer_request()
        # a request uses the memory of its outputs again
        return lambda *inputs: [each.copy() for each in request.infer(dict(zip(names, inputs, strict=True))).values()]


MODES: dict[str, Mode] = {
    "pytorch": PyTorch(),
    "onnxruntime": OnnxRuntime(), "openvino": OpenVino(), "openvino_bfloat16": OpenVino("bfloat16"),
    "compile": Compile(), "compile_bfloat16": Compile("bfloat16"), "aoti": AotInductor(),
    "cuda_graph": CudaGraph(), "cuda_graph_bfloat16": CudaGraph("bfloat16"), "cuda_graph_float16": CudaGraph("float16"),
}  # fmt: skip
"""The modes by name, besides ``eager``, which is PyTorch with all of a policy's checks and can hold any number of episodes."""


def in_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """A module whose policy computes encoder and trunk in this precision; itself for float32.

    Normalisation, the choice among codes and the selection stay in float32: rounding there would select other samples. So does
    the encoder of a student with codes, on which their shares depend.
    """
    if precision == "float32":
        return module
    copied = copy.deepcopy(module)
    policy = next(each for each in copied.children() if hasattr(each, "trunk"))
    for name in ("trunk",) if getattr(policy, "codes", 0) else ("encoder", "trunk"):
        setattr(policy, name, _Autocast(getattr(policy, name), getattr(torch, precision)))
    return copied


class _Autocast(nn.Module):
    """A module in autocast, with float32 outputs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, self.dtype):
            value: Tensor = self.module(*inputs)
        return value.float()


def missing_compiler() -> str:
    """Why nothing can be compiled for the CPU; "" where a C++ compiler is there."""
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"no C++ compiler, {compiler!r} was not found"


def _missing_on_cpu(device: torch.device, packages: Sequence[str]) -> str:
    if device.type != "cpu":
        return "runs on the CPU only"
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


def _missing_bfloat16(device: torch.device) -> str:
    if device.type == "cuda":
        return "" if torch.cuda.is_bf16_supported() else "this GPU has no bfloat16"
    # without these instructions bfloat16 is emulated, which is slower than float32
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "" if has else "this processor has no bfloat16 instructions"
