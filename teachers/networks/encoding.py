"""What every policy of ours does with an observation, once for all chunks that are made for it, and by whose encoder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.contract import FEATURES, Observation
from teachers.networks.augmentation import NO_AUGMENTATION, augment
from teachers.networks.encoder import UnifiedEncoder
from teachers.networks.normalisation import Normaliser
from teachers.networks.observations import check_observation, check_sources, group_by_kind, select_state
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import StateEncoder


class EncodingPolicy(nn.Module):
    """Statistics and encoder: raw observation to the feature `[B, F]`, and the feature to the condition `[B, C]` of a head.

    Feature and condition are the same where the encoder is as wide as the head; else `adapt`, a linear map, lies between
    them, so that a narrow student can use its teacher's encoder.
    """

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        self.shape, self.encoder_frozen = shape, False
        self.normaliser = Normaliser.of(shape)
        self.encoder: nn.Module = (
            StateEncoder(shape.observation_steps, shape.state_size, shape.width)
            if shape.encoder is None
            else UnifiedEncoder(shape)
        )
        self.adapt = nn.Linear(self.feature_size, shape.width) if self.feature_size != shape.width else None

    @property
    def feature_size(self) -> int:
        """F."""
        return self.shape.width if self.shape.encoder is None else self.shape.encoder.width

    # -- encoding --------------------------------------------------------------------------------------------------

    def encode(
        self, observation: Observation, seeds_B: Tensor | None = None, without: Collection[str] = ()
    ) -> Tensor:
        """Raw observation to the condition `[B, C]`; see `features`."""
        feature_BF = self.features(observation, seeds_B, without)
        condition_BC: Tensor = feature_BF if self.adapt is None else self.adapt(feature_BF)
        return condition_BC

    def features(
        self, observation: Observation, seeds_B: Tensor | None = None, without: Collection[str] = ()
    ) -> Tensor:
        """Raw observation to the feature `[B, F]`, or, of ``{"features": feature_BF}``, what was made before as it is.

        seeds_B: `encoder_draws` of the step, where the encoder is trained with augmentation; heeded in training only.
        without: sources to be done without, such as the image of a camera that broke; they need not be there. The encoder was
        trained for that where its `Augmentation.dropout` is not 0.
        Raises ValueError for an observation that cannot be encoded (`teachers.networks.observations.check_observation`), for
        missing seeds in training, and for features given to an encoder that is being trained.
        """
        if FEATURES in observation:
            return self._given(observation[FEATURES])
        sources, shape = check_sources(self.shape, observation, without), self.shape.encoder
        if shape is None:
            feature_BF: Tensor = self.encoder(self.normaliser.normalise_state(observation[STATE]))
            return feature_BF
        rows, kept_BM = check_observation(self.shape, observation, sources), None
        if self.encoder.training and shape.augmentation.any:
            seen = {name: observation[name] for name in sources}
            seen, kept_BM = augment(seen, shape, self._checked(seeds_B, len(seen[sources[0]])))
            rows = group_by_kind(seen, sources)
        return self.encode_rows(rows, sources, kept_BM)

    def encode_rows(self, rows: Observation, sources: Collection[str], kept_BM: Tensor | None = None) -> Tensor:
        """The feature `[B, F]` of raw sources `group_by_kind`, unchecked; kept_BM: bool, which of them each row is shown."""
        assert isinstance(self.encoder, UnifiedEncoder)
        inputs = self.normaliser.normalise(rows)
        if STATE in inputs:
            inputs[STATE] = select_state(self.shape, inputs[STATE])
        return self.encoder.fuse(inputs, sources, kept_BM)

    def encoder_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[B, ...]` that the encoder needs for a training step, drawn on the CPU for the whole batch.

        One int64 seed a row for an encoder with augmentation; nothing for one without, or one that is frozen. They are
        given to `encode` after the observation.
        """
        if self.encoder_frozen or self.shape.encoder is None or not self.shape.encoder.augmentation.any:
            return ()
        return (torch.randint(2**31, (batch_size,), generator=generator),)

    def _checked(self, seeds_B: Tensor | None, batch: int) -> Tensor:
        if seeds_B is None or seeds_B.shape != (batch,) or seeds_B.is_floating_point():
            got = "none" if seeds_B is None else f"{seeds_B.dtype} {tuple(seeds_B.shape)}"
            raise ValueError(
                f"encode: this encoder is trained with augmentation and needs an int64 seed for each of {batch} rows, got "
                f"{got}; pass encoder_draws(B, generator) of the step, or call eval() to encode without augmentation"
            )
        return seeds_B

    def _given(self, feature_BF: Tensor) -> Tensor:
        if feature_BF.ndim != 2 or feature_BF.shape[1] != self.feature_size:
            raise ValueError(
                f"{FEATURES}: got {tuple(feature_BF.shape)}, expected (B, {self.feature_size}); make them with this policy's "
                "features(observation)"
            )
        if self.encoder.training:
            raise ValueError(
                f"{FEATURES}: this encoder is being trained and would learn nothing; call freeze_encoder(), or pass the "
                "observation itself"
            )
        return feature_BF.to(self.normaliser.state_low.dtype)  # they may have been kept in float16

    # -- whose encoder ---------------------------------------------------------------------------------------------

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Train the encoder no more: no gradient, no augmentation, whatever mode the rest is in. False: train it again.

        Its features of an observation are then always the same, and can be made once and kept. `adapt` is no part of it.
        """
        self.encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def copy_encoding(self, other: EncodingPolicy) -> None:
        """Take the weights, `adapt` included, of a policy of the same shape. Statistics stay."""
        self.encoder.load_state_dict(other.encoder.state_dict())
        if self.adapt is not None and other.adapt is not None:
            self.adapt.load_state_dict(other.adapt.state_dict())

    def take_encoder(self, other: EncodingPolicy, share: bool = False) -> None:
        """Encode as another policy does: by a copy of its encoder or, with `share`, by the very same module.

        What is known of observations, their statistics, is copied too; those of actions stay. A head of another size is no
        hindrance where the shape has an encoder of its own; `adapt` is not taken. A shared encoder is frozen, trained and
        saved with either. Raises ValueError where the two encoders differ in shape or in what they see.
        """
        mine, its = _seen_by(self.shape), _seen_by(other.shape)
        if mine != its:
            differing = sorted(name for name in mine if mine[name] != its[name])
            raise ValueError(
                f"encoder: got one with {({name: its[name] for name in differing})}, expected "
                f"{({name: mine[name] for name in differing})}; give both policies the same encoder shape"
            )
        if share:
            self.encoder = other.encoder
        else:
            self.encoder.load_state_dict(other.encoder.state_dict())
        statistics = other.normaliser.state_dict()
        kept = {name: value for name, value in self.normaliser.state_dict().items() if name.startswith("action")}
        self.normaliser.load_state_dict({**statistics, **kept})
        self.freeze_encoder(self.encoder_frozen)


def _seen_by(shape: PolicyShape) -> dict[str, object]:
    """All of a shape that an encoder depends on."""
    encoder = None if shape.encoder is None else replace(shape.encoder, augmentation=NO_AUGMENTATION)
    return {
        "state_names": shape.state_names, "observation_steps": shape.observation_steps, "encoder": encoder,
        "width": shape.width if encoder is None else encoder.width,
    }  # fmt: skip
