"""The observations that a policy is fine-tuned at: those of its hypotheses, perturbed copies included."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.perturbation import with_perturbed
from distill.inputs.observations import Observe
from distill.inputs.recorded import Recording
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import Stage
from distill.stages.sample import SampleHypotheses
from distill.store.manifest import make_key
from teachers.networks.normalisation import Normaliser
from teachers.networks.shapes import PolicyShape


@dataclass(frozen=True)
class TrainingObservations:
    """hypotheses: drawn at frames of `recording`; statistics: whose spread of the state perturbed copies are moved by."""

    hypotheses: SampleHypotheses
    recording: Recording
    statistics: TeacherSource

    @property
    def key(self) -> str:
        return make_key({"sample": self.hypotheses.key, "recording": self.recording.key})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return (*self.hypotheses.needs, *self.statistics.needs)

    def cache(self, context: Context) -> HypothesisDataset:
        """The hypotheses with their frames."""
        return self.hypotheses.with_frames(context)

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        """Frames of the cache to raw observations `[n, O, ..]`."""
        observe, moved = self.recording.observe(context, shape), self.hypotheses.config.perturbation
        if not moved:
            return observe
        spread_S = moved * self.normaliser(context).state_spread()
        return with_perturbed(observe, self.recording.num_frames(context), spread_S, self.hypotheses.seed)

    def normaliser(self, context: Context) -> Normaliser:
        """The statistics, on the CPU."""
        return copy.deepcopy(self.statistics.normaliser(context)).cpu()
