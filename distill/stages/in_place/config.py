"""How an external policy's own network is fine-tuned in place: the objectives that can be used, and the settings."""

from __future__ import annotations

from dataclasses import dataclass

from distill.objectives.sets import ANCHORED, terms_of

IN_PLACE = "in_place"
"""The recipe's name: of its stages, of its results, and the `kind` in its config.json."""

LOSSES = {
    "chamfer": "chamfer", "chamfer_energy": "chamfer_energy", "energy_distance": "energy_distance", "fidelity": "fidelity",
    "imle": "coverage", "noise_regression": "paired",
}  # fmt: skip
"""The objectives that a policy can be trained by in its own interpreter, and their functions in hypotheses.distances."""

def loss_terms(objective: str) -> list[tuple[float, str]]:
    """Weights and functions of `distill.hypotheses.distances` of an objective, or of a weighted sum.

    Raises ValueError for one that cannot be trained in place.
    """
    terms = []
    for weight, name, value in terms_of(ANCHORED if objective == "anchored" else objective):
        if name not in LOSSES or value:
            raise ValueError(f"in_place.objective: got {objective!r}, expected one of {[*sorted(LOSSES), 'anchored']}, or a "
                             "weighted sum such as 'chamfer+0.5energy_distance'")  # fmt: skip
        terms.append((weight, LOSSES[name]))
    return terms


def rate_for(weights: int) -> float:
    """The learning rate for so many weights: 2.5e-3 up to half a million, beyond that falling as their root.

    Measured for small networks only (docs/lab-notes.md); the fall makes 1e-4 of 300 million, as such heads are trained with.
    """
    return 2.5e-3 * min(1.0, (5e5 / weights) ** 0.5)


@dataclass(frozen=True)
class InPlaceConfig:
    """Fine-tuning of an external policy's own network, so that one evaluation gives a chunk (`TrainInPlace`).

    Attributes:
        objective: chamfer, chamfer_energy, energy_distance, fidelity, imle, noise_regression, anchored, or a weighted sum such
            as chamfer+0.5energy_distance
        starting_noises: learned starting noises with learned shares; 0: Gaussian noise, and the saved policy needs no flow2one
        num_latents: M, chunks per observation and training step
        unexecuted_weight: weight of actions after the execution horizon
        training_steps: optimizer steps
        batch_size: observations per step
        at_once: observations whose graph is in memory at a time, 0 for the whole batch; less memory, the same gradient
        learning_rate: 0: 2.5e-3 up to 500,000 trained weights, decreasing with their square root beyond
        weight_decay: of AdamW
        warmup_steps: steps of linear warm-up
        ema_decay: of the averaged weights that are evaluated
        candidates: checkpoints to choose from
        bfloat16: train with bfloat16 autocast
        conditions_gb: disk space for encoded observations [GiB]; if they need more, or more than is free, they are encoded
            again in every step
    """

    objective: str = "chamfer"
    starting_noises: int = 0
    num_latents: int = 8
    unexecuted_weight: float = 0.25
    training_steps: int = 3000
    batch_size: int = 32
    at_once: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.99
    candidates: int = 3
    bfloat16: bool = False
    conditions_gb: float = 16.0
