"""A student's whole call as one ONNX graph of a fixed number of samples, with the selection among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from students import Student
from students.export.graph import ACTIONS, LATENTS, Call
from students.runtime.graphs import StudentCall
from students.runtime.tracing import onnx_of
from students.selection import Selection
from teachers.contract import Observation
from teachers.networks.observations import fake_observation

CANDIDATES, INDEX, LAST_PLAN, HAS_LAST_PLAN = "candidates", "index", "last_plan", "has_last_plan"
"""Names of the graph's further outputs and inputs."""


class WholeCall:
    """The graph in ONNX Runtime on one thread, read back from its file, beside the module that it was exported from.

    samples: N, latents a call takes. inputs, outputs: the names, in their order.
    """

    def __init__(self, student: Student, selection: Selection, executed: int, path: Path) -> None:
        """Writes the file. executed: actions of a plan before the next call. The student must be on the CPU, in eval mode."""
        import onnxruntime

        student.normaliser.check()
        self.module = StudentCall(student, selection, executed).eval()
        self.samples = selection.drawn(executed, student.shape.horizon)
        observation = fake_observation(student.shape, 1)
        examples = [observation[name] for name in self.module.names]
        examples.append(torch.randn(1, self.samples, *student.latent_shape))
        self.inputs, self.outputs = [*self.module.names, LATENTS], [ACTIONS, CANDIDATES, INDEX]
        if self.module.takes_last_plan:
            examples += [torch.zeros(1, student.shape.horizon, student.shape.action_size), torch.ones(1)]
            self.inputs += [LAST_PLAN, HAS_LAST_PLAN]
        with torch.no_grad():
            self.module(*examples)  # computes what is derived from weights once, which a graph cannot
        path.write_bytes(onnx_of(self.module, examples, self.inputs, self.outputs)[0])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of the file's graph; see `StudentCall`."""
        feed = {name: value.numpy() for name, value in zip(self.inputs, inputs, strict=True)}
        chunk, candidates, index = (torch.from_numpy(np.asarray(each)) for each in self._session.run(self.outputs, feed))
        return chunk, candidates, index

    def candidates(self) -> Call:
        """The raw chunks of any number of latents, in groups of N: what `students.export.parity` compares."""
        normaliser = self.module.student.normaliser

        def call(observation: Observation, latents_1MZ: Tensor) -> Tensor:
            observed, found = [observation[name] for name in self.module.names], []
            for group in latents_1MZ.split(self.samples, dim=1):
                padded = torch.cat([group, group[:, :1].expand(-1, self.samples - group.shape[1], *group.shape[2:])], dim=1)
                found.append(self(*observed, padded, *self._last_plan(None))[1][:, : group.shape[1]])
            return normaliser.unnormalise_action(torch.cat(found, dim=1))

        return call

    @torch.no_grad()
    def other_choices(self, observations: Observation, seed: int = 0) -> int:
        """At how many of the observations `[B, O, ..]` the graph selects another of its candidates than PyTorch does.

        Rounding decides between candidates that are equally far from the last plan, or on the border to an outlier.
        """
        generator, different = torch.Generator().manual_seed(seed), 0
        last_TA: Tensor | None = None
        for row in range(len(next(iter(observations.values())))):
            observed = [observations[name][row : row + 1] for name in self.module.names]
            latents = torch.randn(1, self.samples, *self.module.student.latent_shape, generator=generator)  # type: ignore[misc]
            last = self._last_plan(last_TA)
            chunk_1TA, candidates_1NTA, index_1 = self(*observed, latents, *last)
            expected_1 = self.module.index(candidates_1NTA, *last)
            chosen_1TA = self.module.student.normaliser.unnormalise_action(candidates_1NTA[:, int(expected_1)])
            different += not torch.allclose(chunk_1TA, chosen_1TA, rtol=1e-5, atol=1e-6)
            last_TA = candidates_1NTA[0, int(index_1)]
        return different

    def _last_plan(self, last_TA: Tensor | None) -> tuple[Tensor, ...]:
        if not self.module.takes_last_plan:
            return ()
        shape = self.module.student.shape
        if last_TA is None:
            return torch.zeros(1, shape.horizon, shape.action_size), torch.zeros(1)
        return last_TA[None], torch.ones(1)
