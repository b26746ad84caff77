"""From an observation to the condition of a policy's head, once for all its chunks; copied, shared and frozen encoders."""

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
from teachers.networks.observations import check_observation, check_sources, group_by_kind, select_state, sources_of
from teachers.networks.shapes import PolicyShape
from teachers.networks.tool_frame import ToolFrame
from teachers.networks.transformer import StateEncoder


class EncodingPolicy(nn.Module):
    """Normalisation and encoder: raw observation to the feature `[B, F]`, and feature to the condition `[B, C]` of a head.

    Feature and condition are equal where the encoder is as wide as the head; otherwise the linear layer `adapt` lies between
    them, so that a narrow student can use its teacher's encoder. In the tool frame (`PolicyShape.frame`) both end with A more
    numbers, the origin by which normalised chunks are shifted.
    """

    trunk: nn.Module
    """The head's network, of the subclass."""

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        self.shape, self.encoder_frozen = shape, False
        self.normaliser = Normaliser.of(shape)
        self.encoder: nn.Module = (
            StateEncoder(shape.observation_steps, shape.state_size, shape.width)
            if shape.encoder is None
            else UnifiedEncoder(shape)
        )
        self.adapt = nn.Linear(self._encoded_size, shape.width) if self._encoded_size != shape.width else None
        self.tool_frame = ToolFrame(shape) if shape.frame == "tool" else None

    @property
    def feature_size(self) -> int:
        """F, the width of the encoder's feature, with the origin where there is one."""
        return self._encoded_size + (self.shape.action_size if self.tool_frame else 0)

    @property
    def _encoded_size(self) -> int:
        return self.shape.width if self.shape.encoder is None else self.shape.encoder.width

    # -- encoding --------------------------------------------------------------------------------------------------

    def encode(
        self, observation: Observation, seeds_B: Tensor | None = None, without: Collection[str] = ()
    ) -> Tensor:
        """Raw observation to the condition `[B, C]`; see `features`."""
        return self.condition_of(self.features(observation, seeds_B, without))

    def condition_of(self, feature_BF: Tensor) -> Tensor:
        """The condition `[B, C]` of a feature."""
        if self.adapt is None:
            return feature_BF
        feature_BF, origin_BA = self.split_origin(feature_BF)
        condition_BC: Tensor = self.adapt(feature_BF)
        return condition_BC if origin_BA is None else torch.cat([condition_BC, origin_BA], dim=-1)

    def split_origin(self, condition_BC: Tensor) -> tuple[Tensor, Tensor | None]:
        """A feature or condition without its origin, and the origin `[B, A]`, normalised; None in the base frame."""
        if self.tool_frame is None:
            return condition_BC, None
        size = self.shape.action_size
        return condition_BC[..., :-size], condition_BC[..., -size:]

    def in_tool_frame(self, observation: Observation) -> tuple[Observation, Tensor | None]:
        """The raw observation as the encoder gets it, and the normalised origin `[B, A]`; unchanged in the base frame."""
        if self.tool_frame is None:
            return observation, None
        origin_B3 = self.tool_frame.origin(observation[STATE])
        _, scale_A = self.normaliser.centre_scale("action")
        return self.tool_frame.observation(observation, origin_B3), self.tool_frame.offset(origin_B3) / scale_A

    def predict(self, x_NTA: Tensor, condition_BC: Tensor, embedding: Tensor, data: Tensor | float = 0.0) -> Tensor:
        """One evaluation of the trunk: normalised chunks `[N, T, A]` from inputs `[N, T, A]`, N / B for each condition.

        embedding: added to the condition, such as of the time. data: how much of the input is a chunk, `[B]` or a number: in
        the tool frame that share of it is relative to the origin inside the network.
        """
        alone_BC, _ = self.split_origin(condition_BC)
        chunk_NTA: Tensor = self.trunk(self.shifted(x_NTA, condition_BC, -data), alone_BC + embedding)
        return self.shifted(chunk_NTA, condition_BC)

    def shifted(self, x_NTA: Tensor, condition_BC: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """Chunks plus this share, `[B]` or a number, of their condition's origin; as they are in the base frame."""
        _, origin_BA = self.split_origin(condition_BC)
        if origin_BA is None:
            return x_NTA
        scaled_BA = origin_BA * (share[:, None] if isinstance(share, Tensor) else share)
        return x_NTA + scaled_BA.repeat_interleave(len(x_NTA) // len(condition_BC), dim=0)[:, None]

    def features(
        self, observation: Observation, seeds_B: Tensor | None = None, without: Collection[str] = ()
    ) -> Tensor:
        """Raw observation to the feature `[B, F]`; precomputed features ``{"features": feature_BF}`` are returned unchanged.

        seeds_B: `encoder_draws` of the step, where the encoder is trained with augmentation; ignored otherwise.
        without: sources to omit, such as the image of a broken camera. The encoder is trained for that where its
        `Augmentation.dropout` is not 0.
        Raises ValueError for an observation that cannot be encoded (`teachers.networks.observations.check_observation`), for
        missing seeds in training, and for precomputed features while the encoder is being trained.
        """
        if FEATURES in observation:
            return self._precomputed(observation[FEATURES])
        sources, shape = check_sources(self.shape, observation, without), self.shape.encoder
        checked = None if shape is None else check_observation(self.shape, observation, sources)
        if self.tool_frame is None:
            return self._encoded(observation, checked, sources, seeds_B)
        observation, origin_BA = self.in_tool_frame(observation)
        assert origin_BA is not None
        return torch.cat([self._encoded(observation, None, sources, seeds_B), origin_BA], dim=-1)

    def _encoded(
        self, observation: Observation, rows: Observation | None, sources: tuple[str, ...], seeds_B: Tensor | None
    ) -> Tensor:
        """The encoder's feature of a checked observation; rows: its sources by kind, None to group them here."""
        shape, kept_BM = self.shape.encoder, None
        if shape is None:
            feature_BF: Tensor = self.encoder(self.normaliser.normalise_state(observation[STATE]))
            return feature_BF
        rows = group_by_kind(observation, sources) if rows is None else rows
        if self.encoder.training and shape.augmentation.any:
            used = {name: observation[name] for name in sources}
            used, kept_BM = augment(used, shape, self._checked(seeds_B, len(used[sources[0]])))
            rows = group_by_kind(used, sources)
        return self.encode_rows(rows, sources, kept_BM)

    def encode_unchecked(self, observation: Observation) -> Tensor:
        """The condition `[B, C]` of a raw observation that is known to be valid: `encode` for graphs, without its checks."""
        observation, origin_BA = self.in_tool_frame(observation)
        if self.shape.encoder is None:
            feature_BF: Tensor = self.encoder(self.normaliser.normalise_state(observation[STATE]))
        else:
            sources = sources_of(self.shape)
            feature_BF = self.encode_rows(group_by_kind(observation, sources), sources)
        if origin_BA is not None:
            feature_BF = torch.cat([feature_BF, origin_BA], dim=-1)
        return self.condition_of(feature_BF)

    def encode_rows(self, rows: Observation, sources: Collection[str], kept_BM: Tensor | None = None) -> Tensor:
        """The feature `[B, F]` of raw, unchecked sources as of `group_by_kind`; kept_BM: bool, which of them each row keeps."""
        assert isinstance(self.encoder, UnifiedEncoder)
        inputs = self.normaliser.normalise(rows)
        if STATE in inputs:
            inputs[STATE] = select_state(self.shape, inputs[STATE])
        return self.encoder.fuse(inputs, sources, kept_BM)

    def encoder_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[B, ...]` of the encoder for a training step, drawn on the CPU for the whole batch.

        One int64 seed per row for an encoder with augmentation; nothing without augmentation or for a frozen encoder. `encode`
        takes them after the observation.
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

    def _precomputed(self, feature_BF: Tensor) -> Tensor:
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
        return feature_BF.to(self.normaliser.state_low.dtype)  # they may have been cached in float16

    # -- whose encoder ---------------------------------------------------------------------------------------------

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Freezes the encoder: no gradient and no augmentation, in any mode of the rest; False: unfreezes it.

        Its features of an observation are then constant and can be cached. `adapt` is not part of it.
        """
        self.encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def copy_encoding(self, other: EncodingPolicy) -> None:
        """Copies the encoder's weights, with `adapt`, from a policy of the same shape. Statistics stay."""
        self.encoder.load_state_dict(other.encoder.state_dict())
        if self.adapt is not None and other.adapt is not None:
            self.adapt.load_state_dict(other.adapt.state_dict())

    def take_encoder(self, other: EncodingPolicy, share: bool = False) -> None:
        """Takes another policy's encoder: a copy or, with `share`, the same module.

        The observations' statistics are copied too; those of actions stay, and `adapt` is not taken. The heads may differ in
        size where the shape has an encoder of its own. A shared encoder is frozen, trained and saved with either policy.
        Raises ValueError where the two encoders differ in shape or in their sources.
        """
        mine, its = _encoder_settings(self.shape), _encoder_settings(other.shape)
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


def _encoder_settings(shape: PolicyShape) -> dict[str, object]:
    """The parts of a shape on which an encoder depends."""
    encoder = None if shape.encoder is None else replace(shape.encoder, augmentation=NO_AUGMENTATION)
    return {
        "state_names": shape.state_names, "observation_steps": shape.observation_steps, "encoder": encoder,
        "width": shape.width if encoder is None else encoder.width, "frame": shape.frame,
    }  # fmt: skip
