"""A policy's own head at one evaluation as an ONNX graph, made in the adapter's process: condition and noise to raw chunks.

teachers/adapters/program.py loads it by its path, so it imports torch and nothing of ours. Python 3.10 or newer; onnx and
onnxscript. What encodes an observation stays the user's own: its checks could not be part of a graph.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NOISE, ACTIONS, SAMPLES = "noise", "actions", "samples"
"""Names of the graph's last input, of its output, and of the dynamic axis of both."""

EXAMPLE_SAMPLES, FIXED_SAMPLES = 89, 16
"""Length of the dynamic axis while a graph is traced, other than every size in the policy; of the axis where a
policy's code does not let it be dynamic."""


class OneStepGraph(nn.Module):
    """Tensors of a condition `[1, ..]` and noise `[1, M, ..]` to raw chunks `[1, M, T, A]`.

    policy: a `teachers.adapters.one_step.OneStepPolicy`; condition: whose structure the tensors fill, in their order.
    """

    def __init__(self, policy: Any, condition: Any) -> None:
        super().__init__()
        self._policy, self._condition = policy, condition
        held = [policy.built] if isinstance(policy.built, nn.Module) else [
            each for each in vars(policy.built).values() if isinstance(each, nn.Module)]  # fmt: skip
        self.held = nn.ModuleList(held)  # so that their weights are found

    def forward(self, tensors: list[Tensor], noise: Tensor) -> Tensor:
        rows = [each.expand(noise.shape[1], *each.shape[1:]) for each in tensors]
        return self._policy.chunks(_filled(self._condition, iter(rows)), noise[0])[None]


def write_graph(policy: Any, observation: dict[str, Tensor], path: Path) -> tuple[list[list[Any]], dict[str, Any]]:
    """Write the graph; returns name and shape of each input, and what it should give: inputs and chunks of one observation.

    Raises ValueError for a head that cannot be traced, with torch's reason, and where onnx or onnxscript is not installed.
    """
    condition = policy.encode({name: value[:1] for name, value in observation.items()})
    tensors = [each.float() if each.is_floating_point() else each for each in policy.tensors(condition)]
    noise = torch.randn(1, EXAMPLE_SAMPLES, *policy.noise_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    graph, given = OneStepGraph(policy, condition).eval(), noise[:, :FIXED_SAMPLES]
    names, dynamic = [f"condition_{number}" for number in range(len(tensors))], True
    still: list[dict[int, Any]] = [{} for _ in tensors]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                shapes = {"tensors": still, "noise": {1: torch.export.Dim.DYNAMIC}}
                program = torch.export.export(graph, (tensors, noise), dynamic_shapes=shapes)
            except Exception:  # whatever torch raises where the policy's code fixes the number of samples
                program, dynamic = torch.export.export(graph, (tensors, given)), False
            made = torch.onnx.export(
                program, (), input_names=[*names, NOISE], output_names=[ACTIONS], dynamo=True, verbose=False,
                dynamic_shapes={"tensors": still, "noise": {1: SAMPLES}} if dynamic else None,
            )  # fmt: skip
            assert made is not None
            made.save(path, external_data=False)
            chunks = graph(tensors, given)
    except ImportError as error:
        raise ValueError(f"a graph needs onnx and onnxscript in the adapter's interpreter ({error}); pip install onnx "
                         "onnxscript") from error  # fmt: skip
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"this policy's head cannot be traced as a graph ({type(error).__name__}: {first}); run it by its own "
                         "code, which is as it was") from error  # fmt: skip
    told = {name: each.cpu().numpy() for name, each in zip(names, tensors, strict=True)}
    inputs = [[name, list(each.shape)] for name, each in zip(names, tensors, strict=True)]
    samples = SAMPLES if dynamic else FIXED_SAMPLES
    return [*inputs, [NOISE, [1, samples, *policy.noise_shape]]], {
        **told, NOISE: given.cpu().numpy(), ACTIONS: chunks.cpu().numpy()
    }  # fmt: skip


def _filled(condition: Any, rows: Any) -> Any:
    """The condition with its tensors replaced, in their order."""
    if isinstance(condition, Tensor):
        return next(rows)
    if isinstance(condition, dict):
        return {name: _filled(value, rows) for name, value in condition.items()}
    if isinstance(condition, (list, tuple)):
        parts = [_filled(value, rows) for value in condition]
        return type(condition)(*parts) if hasattr(condition, "_fields") else type(condition)(parts)
    return condition
