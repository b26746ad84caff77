"""An adapter of networks that someone else might have, with all that fine-tuning them in place needs: MLP, U-Net, transformer,
from states, point clouds or images.

    flow2one convert --teacher examples/own_network.py:build --adapter.arguments folder=my-policy \
        --observations runs/avoid-seed0/demos --task avoid --out runs/own-network

`Foreign.save` writes the folder, `flow_loss` is what trains one (benchmarks/in_place.py does). It imports nothing of flow2one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def time_features(t: Tensor) -> Tensor:
    """`[N]` to `[N, 8]`."""
    angle = t[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
    return torch.cat([angle.sin(), angle.cos()], 1)


class Head(nn.Module):
    """Condition `[N, C]`, x `[N, T, A]`, t `[N]` to the clean chunk that is expected, of the shape of x."""

    def __init__(self, horizon: int, action_size: int, width: int) -> None:
        super().__init__()
        self.horizon, self.action_size = horizon, action_size


class MLP(Head):
    def __init__(self, horizon: int, action_size: int, width: int) -> None:
        super().__init__(horizon, action_size, width)
        size = horizon * action_size
        self.layers = nn.Sequential(
            nn.Linear(size + width + 8, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU(),
            nn.Linear(4 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, size),
        )  # fmt: skip

    def forward(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), condition, time_features(t)], 1)).view_as(x)


class UNet(Head):
    """Convolutions over time, once halved and doubled, the condition added to every channel."""

    def __init__(self, horizon: int, action_size: int, width: int) -> None:
        super().__init__(horizon, action_size, width)
        self.condition = nn.ModuleList(nn.Linear(width + 8, size) for size in (width, 2 * width, width))
        self.enter = nn.Conv1d(action_size, width, 5, padding=2)
        self.down = nn.Conv1d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.Conv1d(2 * width, 2 * width, 5, padding=2)
        self.up = nn.ConvTranspose1d(2 * width, width, 4, stride=2, padding=1)
        self.join = nn.Conv1d(2 * width, width, 5, padding=2)
        self.leave = nn.Conv1d(width, action_size, 5, padding=2)
        self.norms = nn.ModuleList(nn.GroupNorm(4, size) for size in (width, 2 * width, 2 * width, width))

    def forward(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        given = torch.cat([condition, time_features(t)], 1)
        first, second, third = (layer(given)[..., None] for layer in self.condition)
        high = nn.functional.silu(self.norms[0](self.enter(x.transpose(1, 2))) + first)
        low = nn.functional.silu(self.norms[1](self.down(high)) + second)
        low = low + nn.functional.silu(self.norms[2](self.middle(low)))
        joined = torch.cat([high, self.up(low)], 1)
        return self.leave(nn.functional.silu(self.norms[3](self.join(joined)) + third)).transpose(1, 2)


class Transformer(Head):
    def __init__(self, horizon: int, action_size: int, width: int) -> None:
        super().__init__(horizon, action_size, width)
        self.enter, self.leave = nn.Linear(action_size, width), nn.Linear(width, action_size)
        self.place = nn.Parameter(0.1 * torch.randn(horizon, width))
        self.given = nn.Linear(width + 8, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        given = self.given(torch.cat([condition, time_features(t)], 1))[:, None]
        hidden = self.layers(torch.cat([given, self.enter(x) + self.place + given], 1))
        return self.leave(hidden[:, 1:])


class Encoder(nn.Module):
    """O frames of state, point cloud `[N, 3+C]` and images `[3, H, W]` to one vector.

    Points go through one MLP each and then a maximum over all of them; an image goes through three convolutions.
    """

    def __init__(self, features: dict[str, list[int]], steps: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for name, shape in features.items():
            key = name.replace(".", "_")
            if len(shape) == 1:
                self.parts[key] = nn.Sequential(nn.Linear(shape[0], 4 * width), nn.SiLU())
            elif len(shape) == 2:
                self.parts[key] = nn.Sequential(nn.Linear(shape[1], width), nn.SiLU(), nn.Linear(width, 4 * width))
            else:
                sizes = (3, width // 4, width // 2, width)
                layers = [nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU())
                          for before, after in zip(sizes, sizes[1:], strict=False)]  # fmt: skip
                pixels = -(-shape[1] // 8) * -(-shape[2] // 8)
                self.parts[key] = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * pixels, 4 * width))
        self.join = nn.Sequential(nn.Linear(4 * width * steps * len(features), width), nn.SiLU())

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        found = []
        for name, value in seen.items():
            part = self.parts[name.replace(".", "_")]
            each = part(value.flatten(0, 1))  # frame by frame
            each = each.amax(1) if value.ndim == 4 else each
            found.append(each.unflatten(0, value.shape[:2]).flatten(1))
        return self.join(torch.cat(found, 1))


HEADS: dict[str, type[Head]] = {"mlp": MLP, "unet": UNet, "transformer": Transformer}


class Foreign(nn.Module):
    """A flow policy: an encoder, a head, statistics, and its own folder format.

    features: shapes of what it observes besides a state of `state_size` numbers. columns: of the recorded state that these are,
    all by default. num_steps: solver steps it is used with.
    """

    def __init__(
        self, kind: str, state_size: int, horizon: int, action_size: int, steps: int, width: int, num_steps: int,
        features: dict[str, list[int]] | None = None, columns: list[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config: dict[str, Any] = {"kind": kind, "state_size": state_size, "horizon": horizon, "action_size": action_size,
                                       "steps": steps, "width": width, "num_steps": num_steps,
                                       "features": features or {}, "columns": columns}  # fmt: skip
        self.columns = list(range(state_size)) if columns is None else columns
        self.horizon, self.action_size, self.observation_steps, self.num_steps = horizon, action_size, steps, num_steps
        shapes = {"observation.state": [state_size], **(features or {})}
        self.features, self.encoder = tuple(shapes), Encoder(shapes, steps, width)
        self.head = HEADS[kind](horizon, action_size, width)
        for name, size in (("state", state_size), ("action", action_size)):
            self.register_buffer(f"{name}_centre", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def encode(self, observation: dict[str, Tensor]) -> Tensor:
        seen = {name: observation[name] for name in self.features}
        for name, value in seen.items():
            if not value.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity")
        state = (seen["observation.state"][..., self.columns] - self.state_centre) / self.state_scale
        return self.encoder({**seen, "observation.state": state})

    def velocity(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return (self.head(condition, x, t) - x) / (1 - t[:, None, None]).clamp(min=0.05)

    def to_actions(self, x: Tensor) -> Tensor:
        return x * self.action_scale + self.action_centre

    def trained(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "policy.json").write_text(json.dumps({**self.config, "num_steps": 1}))
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, f"{folder}/policy.safetensors")

    def reload(self, folder: str) -> Foreign:
        return load(folder)

    def flow_loss(self, observation: dict[str, Tensor], action_BTA: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching: the squared error of the velocity data - noise at a random time, of late times less."""
        data = (action_BTA - self.action_centre) / self.action_scale
        noise = torch.randn(data.shape, generator=generator)
        t = torch.rand(len(data), generator=generator)
        x = t[:, None, None] * data + (1 - t[:, None, None]) * noise
        error = (self.head(self.encode(observation), x, t) - data) / (1 - t[:, None, None]).clamp(min=0.3)
        return error.square().mean()


def load(folder: str) -> Foreign:
    """The policy in a folder that `Foreign.save` wrote."""
    policy = Foreign(**json.loads((Path(folder) / "policy.json").read_text()))
    policy.load_state_dict(load_file(f"{folder}/policy.safetensors"))
    return policy.eval().requires_grad_(False)


def make(kind: str = "mlp", seed: int = 0, **sizes: Any) -> Foreign:
    """One with random weights."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"state_size": 2, "horizon": 8, "action_size": 2, "steps": 2, "width": 8, "num_steps": 4, **sizes}
    return Foreign(kind, **given).eval().requires_grad_(False)


def build(folder: str = "", kind: str = "mlp") -> Foreign:
    return load(folder) if folder else make(kind)
