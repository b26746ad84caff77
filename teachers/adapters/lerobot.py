"""A trained LeRobot policy as a teacher: an adapter that runs in LeRobot's own environment, through LeRobot's own classes.

    distill.py convert --teacher teachers/adapters/lerobot.py:build --adapter.python /path/to/lerobot/bin/python
                       --adapter.arguments path=outputs/train/checkpoints/last/pretrained_model

It imports nothing of ours, so that it can be loaded by its path; docs/lerobot.md tells how. Kinds: diffusion, multi_task_dit,
smolvla, pi0 and pi05. What a policy sees is encoded once per observation and only its head is asked K times. Python 3.10.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
TEXT_POLICIES = ("smolvla", "pi0", "pi05", "multi_task_dit")
"""These are told in words what to do."""
ALIASES = {"observation.images.front": "observation.image"}
"""Our name of what a policy may call otherwise: recordings read by `envs.recorded.observations` name a lone camera so."""


def build(path: str, instruction: str = "", device: str = "cpu", names: str = "", steps: str = "") -> LeRobotTeacher:
    """The policy in the folder `path`, as LeRobot saves it (``pretrained_model``).

    instruction: what it is told to do, for policies that are told; device: where it runs; names: ``ours=its`` pairs, joined by
    commas, for features whose recorded name is not the policy's; steps: solver steps, "" for as many as its config says.
    Raises ValueError for a folder that is not whole, whose processors name classes of their own or lack finite statistics.
    """
    folder = Path(path)
    config, policy, before, after = load(folder, device)
    pairs = dict(pair.split("=", 1) for pair in names.split(",") if "=" in pair)
    if config.type in TEXT_POLICIES and not instruction:
        raise ValueError(f"{folder}: a {config.type} policy is told what to do; give it: instruction=pick up the cube")
    kinds: dict[str, type[LeRobotTeacher]] = {"diffusion": Diffusion, "multi_task_dit": MultiTaskDiT}
    return kinds.get(config.type, Prefixed)(policy, before, after, instruction, pairs, int(steps) if steps else 0)


def load(folder: Path, device: str) -> tuple[Any, Any, Any, Any]:
    """Config, policy, pre- and postprocessor. See `build` for what is refused."""
    check_folder(folder)
    kind = json.loads((folder / "config.json").read_text()).get("type")
    if kind not in ("diffusion", *TEXT_POLICIES):
        raise ValueError(f"{folder}: a policy of type {kind!r}, expected diffusion or one of {list(TEXT_POLICIES)}")
    try:  # which makes its config known by that type
        importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: this LeRobot has no policies of type {kind!r} ({error}); take a newer one") from error
    _check_transformers(folder, kind)
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(folder), local_files_only=True)
    config.device = device
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config, local_files_only=True, strict=True)
    there = {"device_processor": {"device": device}}
    before, after = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=there)
    return config, policy.to(device).eval(), before, after


def _check_transformers(folder: Path, kind: str) -> None:
    """Raise ValueError where this LeRobot asks for a changed transformers that is not here, which it would only find out
    after it had made billions of weights: pi0 and pi05 of LeRobot 0.4 do."""
    if kind not in ("pi0", "pi05"):
        return
    model = importlib.util.find_spec(f"lerobot.policies.{kind}.modeling_{kind}")
    asks = model is not None and model.origin is not None and "models.siglip import check" in Path(model.origin).read_text()
    if asks and importlib.util.find_spec("transformers.models.siglip.check") is None:
        here = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lerobot", "transformers"))
        raise ValueError(f"{folder}: {kind} of this LeRobot needs its own branch of transformers (its extra pi), here are "
                         f"{here}; install that branch, or a newer LeRobot, which takes a released one")  # fmt: skip


# -- what is refused before LeRobot looks at it ------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that lacks a file, whose weights or statistics are cut off, or not finite.

    A processor's step that names a class by its module would have it imported: only LeRobot's registered steps are let in.
    """
    lacking = [name for name in ("config.json", "model.safetensors", *PROCESSORS) if not (folder / name).is_file()]
    if lacking:
        old = lacking == list(PROCESSORS)
        hint = "; saved before LeRobot 0.4, whose migration of normalisation it needs first" if old else ""
        raise ValueError(f"{folder}: lacks {lacking}, expected a folder pretrained_model of LeRobot's{hint}")
    tensors(folder / "model.safetensors")
    for name in PROCESSORS:
        for number, step in enumerate(_json(folder / name).get("steps", [])):
            if not isinstance(step, dict) or "registry_name" not in step:
                raise ValueError(f"{folder / name}: step {number} names a class of its own, {step.get('class')!r}; expected "
                                 "steps that LeRobot registers, nothing else is imported")  # fmt: skip
            held = tensors(folder / str(step["state_file"])) if step.get("state_file") else {}
            bad = sorted(key for key, value in held.items() if not bool(value.isfinite().all()))
            if bad:
                file = folder / str(step["state_file"])
                raise ValueError(f"{file}: {bad[0]} has NaN or infinity, expected finite statistics")
            modes = (step.get("config") or {}).get("norm_map", {})
            if "normalizer" in step["registry_name"] and not held and set(modes.values()) - {"IDENTITY"}:
                raise ValueError(f"{folder / name}: step {number} ({step['registry_name']}) has no statistics; a policy "
                                 "without them would see and give other numbers than it was trained with")  # fmt: skip


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. ValueError for one that is missing, cut off, or something else (a pickle)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: is no whole safetensors file: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error


# -- the teachers ------------------------------------------------------------------------------------------------------


class LeRobotTeacher:
    """What all kinds share. `sample` is the contract's; every chunk begins at the present frame.

    encoded: how many observations were encoded so far; features: those it looks at, under our names; horizon: T.
    """

    def __init__(
        self, policy: Any, before: Any, after: Any, instruction: str, names: dict[str, str], num_steps: int
    ) -> None:
        self.policy, self.before, self.after, self.instruction = policy, before, after, instruction
        config = policy.config
        self.device = torch.device(config.device)
        self.action_size, self.num_steps = int(config.action_feature.shape[0]), num_steps or self.steps_told()
        wanted = [name for name in config.input_features if name.startswith("observation.")]
        back = {its: ours for ours, its in {**ALIASES, **names}.items() if its in wanted}
        self.names = {back.get(name, name): name for name in wanted}
        self.features, self.encoded = list(self.names), 0
        self.observation_steps = int(getattr(config, "n_obs_steps", 1))
        self.horizon = self.length()

    @torch.no_grad()
    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, generator: Any) -> Tensor:
        """`[B, K, T, A]` raw actions; all noise from the generator. ValueError for an observation that does not fit."""
        batch = self.prepared(observation)
        size = len(next(iter(observation.values())))
        self.policy.reset()
        chunks_NTA = self.chunks(batch, size, num_hypotheses, num_steps, generator)
        raw = self.after(chunks_NTA.float())
        return raw.to(self.device).float().reshape(size, num_hypotheses, *raw.shape[1:])[..., : self.action_size]

    def prepared(self, observation: dict[str, Tensor]) -> dict[str, Any]:
        """What the policy's own preprocessor makes of an observation `[B, O, ..]`; without O where it sees one frame."""
        missing = [name for name in self.features if name not in observation]
        if missing:
            raise ValueError(f"observation: {missing} is missing; got {sorted(observation)}. Where it has another name, say "
                             "so: names=recorded=policy's")  # fmt: skip
        batch: dict[str, Any] = {}
        for name, its in self.names.items():
            value = observation[name]
            if value.shape[1] != self.observation_steps or not bool(value.isfinite().all()):
                raise ValueError(f"observation: {name} is {tuple(value.shape)}, expected {self.observation_steps} frames of "
                                 "finite numbers")  # fmt: skip
            batch[its] = (value if self.sees_time() else value[:, -1]).clone()
        batch["task"] = [self.instruction] * len(value)
        return dict(self.before(batch))

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        """Normalised chunks `[B*K, T, A]`, the K of an observation one after the other."""
        raise NotImplementedError

    def sees_time(self) -> bool:
        """Whether its inputs have the O frames' dimension."""
        return True

    def length(self) -> int:
        """T: what it plans from the present frame on; LeRobot carries out the first n_action_steps of it."""
        return int(self.policy.config.horizon) - self.observation_steps + 1

    def steps_told(self) -> int:
        raise NotImplementedError

    def images(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The cameras' images in one tensor, as these policies stack them."""
        cameras = list(self.policy.config.image_features)
        return {**batch, "observation.images": torch.stack([batch[name] for name in cameras], dim=-4)} if cameras else batch

    def noise(self, *shape: int, generator: Any) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(self.device)


class Diffusion(LeRobotTeacher):
    """DDPM or DDIM on a U-Net: the global conditioning is made once and repeated."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model = self.policy.diffusion
        condition = model._prepare_global_conditioning(self.images(batch))
        self.encoded += size
        with changed(model, num_inference_steps=num_steps):
            drawn = model.conditional_sample(
                size * count, global_cond=condition.repeat_interleave(count, 0), generator=generator
            )
        return drawn[:, self.observation_steps - 1 :]

    def steps_told(self) -> int:
        return int(self.policy.diffusion.num_inference_steps)


class MultiTaskDiT(LeRobotTeacher):
    """A diffusion transformer whose objective is flow matching (time from 0, noise, to 1) or diffusion."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, objective = self.policy.noise_predictor, self.policy.objective
        condition = self.policy.observation_encoder.encode(self.images(batch))
        self.encoded += size
        repeated, config = condition.repeat_interleave(count, 0), self.policy.config
        x_NTA = self.noise(size * count, config.horizon, self.action_size, generator=generator).to(condition.dtype)
        if config.is_flow_matching:
            integrate = objective._rk4_integrate if config.integration_method == "rk4" else objective._euler_integrate
            x_NTA = integrate(model, x_NTA, torch.linspace(0, 1, num_steps + 1, device=self.device), repeated)
        else:
            scheduler = objective.noise_scheduler
            scheduler.set_timesteps(num_steps)
            for time in scheduler.timesteps:
                out = model(x_NTA, torch.full((len(x_NTA),), int(time), device=self.device), conditioning_vec=repeated)
                x_NTA = scheduler.step(out, time, x_NTA, generator=generator).prev_sample
        return x_NTA[:, self.observation_steps - 1 :]

    def evaluations(self, num_steps: int) -> int:
        config = self.policy.config
        return num_steps * (4 if config.is_flow_matching and config.integration_method == "rk4" else 1)

    def steps_told(self) -> int:
        config = self.policy.config
        return int(config.num_integration_steps if config.is_flow_matching else self.policy.objective.num_inference_steps)


class Prefixed(LeRobotTeacher):
    """smolvla, pi0 and pi05: images and words become a prefix, whose keys and values the action head attends to.

    The policy's own sampler runs for the B observations, with noise for B*K chunks. It makes the prefix for B, and every
    denoising step is given what belongs to an observation K times over. Time runs from 1 (noise) to 0.
    """

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, config = self.policy.model, self.policy.config
        noise = self.noise(size * count, config.chunk_size, config.max_action_dim, generator=generator)
        embed, denoise = model.embed_prefix, model.denoise_step
        signature, kept = inspect.signature(denoise), dict[str, Any]()

        def embed_prefix(*given: Any, **named: Any) -> Any:
            self.encoded += size
            return embed(*given, **named)

        def denoise_step(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            x_t, timestep = arguments.pop("x_t"), arguments.pop("timestep")
            if not kept:  # the same in every step
                kept.update({name: repeated(value, count) for name, value in arguments.items()})
            return denoise(**kept, x_t=x_t, timestep=timestep[:1].expand(len(x_t)))

        steps = {name: num_steps for name in ("num_steps", "num_inference_steps") if hasattr(config, name)}
        with changed(model, embed_prefix=embed_prefix, denoise_step=denoise_step), changed(config, **steps):
            return self.policy.predict_action_chunk(batch, noise=noise)

    def sees_time(self) -> bool:
        return False

    def length(self) -> int:
        return int(self.policy.config.chunk_size)

    def steps_told(self) -> int:
        config = self.policy.config
        return int(getattr(config, "num_steps", None) or config.num_inference_steps)


def repeated(value: Any, count: int) -> Any:
    """Every row of every tensor `count` times, in dicts, lists, tuples, and transformers' caches of keys and values."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, dim=0)
    if isinstance(value, dict):
        return {name: repeated(each, count) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(repeated(each, count) for each in value)
    if hasattr(value, "batch_repeat_interleave"):
        copied = copy.deepcopy(value)
        copied.batch_repeat_interleave(count)
        return copied
    if value is None:
        return None
    raise TypeError(f"a prefix holds a {type(value).__name__}, expected tensors or a cache of keys and values")


@contextlib.contextmanager
def changed(thing: Any, **attributes: Any) -> Iterator[None]:
    """These attributes of a thing for as long as it lasts; those it did not have itself are taken off again."""
    before = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    for name, value in attributes.items():
        object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(thing, name, before[name])
            else:
                object.__delattr__(thing, name)
