"""A trained LeRobot policy as a teacher: an adapter that runs in LeRobot's own environment, through LeRobot's own classes.

    distill.py convert --teacher teachers/adapters/lerobot_policies.py:build --adapter.python /path/to/lerobot/bin/python
                       --adapter.arguments path=outputs/train/checkpoints/last/pretrained_model

It imports nothing of ours, so that it can be loaded by its path; see docs/lerobot.md. Policies: diffusion, multi_task_dit,
smolvla, pi0 and pi05. An observation is encoded once; only the head runs for each of the K chunks. Python 3.10.
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
"""Policies with a language instruction."""
ALIASES = {"observation.images.front": "observation.image"}
"""Our names for features that a policy may name otherwise: `envs.recorded.observations` names a single camera so."""


def build(path: str, instruction: str = "", device: str = "cpu", names: str = "", steps: str = "") -> Any:
    """The policy in the folder `path`, as LeRobot saves it (``pretrained_model``).

    instruction: the task in words, for `TEXT_POLICIES`; device: where it runs; names: ``ours=its`` pairs, joined by commas, for
    features whose recorded name is not the policy's; steps: solver steps, "": as in its config.
    Raises ValueError for an incomplete folder, and for processors with classes of their own or without finite statistics.
    """
    folder = Path(path)
    config, policy, preprocessor, postprocessor = load(folder, device)
    pairs = dict(pair.split("=", 1) for pair in names.split(",") if "=" in pair)
    if config.type in TEXT_POLICIES and not instruction:
        raise ValueError(f"{folder}: a {config.type} policy needs an instruction; give it: instruction=pick up the cube")
    kinds: dict[str, type[LeRobotTeacher]] = {"diffusion": Diffusion, "multi_task_dit": MultiTaskDiT}
    kind, num_steps = kinds.get(config.type, PrefixPolicy), int(steps) if steps else 0
    teacher = kind(policy, preprocessor, postprocessor, instruction, pairs, num_steps)
    in_place = _beside("lerobot_in_place.py")
    if in_place.why_not(policy, folder):
        return teacher
    return in_place.InPlace(teacher, folder, lambda other: build(other, instruction, device, names))


def _beside(name: str) -> Any:
    """The file of this name beside this one as a module, by its path, as this one is loaded."""
    spec = importlib.util.spec_from_file_location("flow2one_" + Path(name).stem, Path(__file__).resolve().parent / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder: Path, device: str) -> tuple[Any, Any, Any, Any]:
    """Config, policy, pre- and postprocessor. Raises ValueError as `build`."""
    check_folder(folder)
    kind = json.loads((folder / "config.json").read_text()).get("type")
    if kind not in ("diffusion", *TEXT_POLICIES):
        raise ValueError(f"{folder}: a policy of type {kind!r}, expected diffusion or one of {list(TEXT_POLICIES)}")
    try:  # importing it registers its config
        importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: this LeRobot has no policies of type {kind!r} ({error}); take a newer one") from error
    _check_transformers(folder, kind)
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(folder), local_files_only=True)
    config.device = device
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config, local_files_only=True, strict=True)
    overrides = {"device_processor": {"device": device}}
    processors = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
    return config, policy.to(device).eval(), *processors


def _check_transformers(folder: Path, kind: str) -> None:
    """Raises ValueError where this LeRobot needs a patched transformers that is not installed (pi0 and pi05 of LeRobot 0.4).

    LeRobot itself would notice only after it had created billions of weights.
    """
    if kind not in ("pi0", "pi05"):
        return
    model = importlib.util.find_spec(f"lerobot.policies.{kind}.modeling_{kind}")
    source = "" if model is None or model.origin is None else Path(model.origin).read_text()
    needs_patch = "models.siglip import check" in source
    if needs_patch and importlib.util.find_spec("transformers.models.siglip.check") is None:
        installed = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lerobot", "transformers"))
        raise ValueError(f"{folder}: {kind} of this LeRobot needs its own branch of transformers (its extra pi), installed are "
                         f"{installed}; install that branch, or a newer LeRobot, which takes a released one")  # fmt: skip


# -- checks before LeRobot reads the folder -----------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raises ValueError for missing files, truncated weights, and statistics that are truncated or not finite.

    A processor step that names a class by its module would import it: only LeRobot's registered steps are accepted.
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
                                 "without them would get and output other numbers than in training")  # fmt: skip


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError for a missing, truncated or different file (a pickle)."""
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
    """The base class of all kinds. `sample` is that of `teachers.contract.Teacher`; a chunk begins at the present frame.

    num_encoded: observations encoded so far; features: those that it uses, under our names; observation_steps: O; horizon: T;
    num_steps: solver steps it is used with.
    """

    def __init__(
        self, policy: Any, preprocessor: Any, postprocessor: Any, instruction: str, names: dict[str, str], num_steps: int
    ) -> None:
        self.policy, self.instruction = policy, instruction
        self.preprocessor, self.postprocessor = preprocessor, postprocessor
        config = policy.config
        self.device = torch.device(config.device)
        self.action_size, self.num_steps = int(config.action_feature.shape[0]), num_steps or self.configured_steps()
        inputs = [name for name in config.input_features if name.startswith("observation.")]
        ours_of = {its: ours for ours, its in {**ALIASES, **names}.items() if its in inputs}
        self.names = {ours_of.get(name, name): name for name in inputs}
        self.features, self.num_encoded = list(self.names), 0
        self.observation_steps = int(getattr(config, "n_obs_steps", 1))
        self.horizon = self.chunk_length()

    @torch.no_grad()
    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, generator: Any) -> Tensor:
        """`[B, K, T, A]` raw actions; all noise from the generator. Raises ValueError as `preprocess`."""
        batch = self.preprocess(observation)
        size = len(next(iter(observation.values())))
        self.policy.reset()
        chunks_NTA = self.chunks(batch, size, num_hypotheses, num_steps, generator)
        raw = self.postprocessor(chunks_NTA.float())
        return raw.to(self.device).float().reshape(size, num_hypotheses, *raw.shape[1:])[..., : self.action_size]

    def preprocess(self, observation: dict[str, Tensor]) -> dict[str, Any]:
        """An observation `[B, O, ..]` after the policy's own preprocessor; without O for policies of one frame.

        Raises ValueError for missing features, another O, or values that are not finite.
        """
        missing = [name for name in self.features if name not in observation]
        if missing:
            raise ValueError(f"observation: {missing} is missing; got {sorted(observation)}. If it has another name, "
                             "add names=recorded=policy's")  # fmt: skip
        batch: dict[str, Any] = {}
        for name, its in self.names.items():
            value = observation[name]
            if value.shape[1] != self.observation_steps or not bool(value.isfinite().all()):
                raise ValueError(f"observation: {name} is {tuple(value.shape)}, expected {self.observation_steps} frames of "
                                 "finite numbers")  # fmt: skip
            batch[its] = (value if self.takes_history() else value[:, -1]).clone()
        batch["task"] = [self.instruction] * len(value)
        return dict(self.preprocessor(batch))

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` solver steps."""
        return num_steps

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        """Normalised chunks `[B*K, T, A]`, the K of an observation in a row. size, count: B and K."""
        raise NotImplementedError

    def takes_history(self) -> bool:
        """Whether its inputs have the dimension O."""
        return True

    def chunk_length(self) -> int:
        """T, actions from the present frame on; LeRobot executes the first n_action_steps of them."""
        return int(self.policy.config.horizon) - self.observation_steps + 1

    def configured_steps(self) -> int:
        """Solver steps in its config."""
        raise NotImplementedError

    def images(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with all cameras' images stacked, as these policies expect them."""
        cameras = list(self.policy.config.image_features)
        return {**batch, "observation.images": torch.stack([batch[name] for name in cameras], dim=-4)} if cameras else batch

    def noise(self, *shape: int, generator: Any) -> Tensor:
        """Standard normal numbers of this shape."""
        return torch.randn(*shape, generator=generator, device=generator.device).to(self.device)


class Diffusion(LeRobotTeacher):
    """DDPM or DDIM on a U-Net: the global conditioning is computed once and repeated."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model = self.policy.diffusion
        condition = model._prepare_global_conditioning(self.images(batch))
        self.num_encoded += size
        with patched_attributes(model, num_inference_steps=num_steps):
            drawn = model.conditional_sample(
                size * count, global_cond=condition.repeat_interleave(count, 0), generator=generator
            )
        return drawn[:, self.observation_steps - 1 :]

    def configured_steps(self) -> int:
        return int(self.policy.diffusion.num_inference_steps)


class MultiTaskDiT(LeRobotTeacher):
    """A diffusion transformer whose objective is flow matching (time from 0, noise, to 1) or diffusion."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, objective = self.policy.noise_predictor, self.policy.objective
        condition = self.policy.observation_encoder.encode(self.images(batch))
        self.num_encoded += size
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

    def configured_steps(self) -> int:
        config = self.policy.config
        return int(config.num_integration_steps if config.is_flow_matching else self.policy.objective.num_inference_steps)


class PrefixPolicy(LeRobotTeacher):
    """smolvla, pi0 and pi05: images and words become a prefix, to whose keys and values the action head attends.

    The policy's own sampler runs for the B observations with noise for B*K chunks. It computes the prefix for B, and every
    denoising step gets each observation's tensors K times. Time runs from 1 (noise) to 0.
    """

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, config = self.policy.model, self.policy.config
        noise = self.noise(size * count, config.chunk_size, config.max_action_dim, generator=generator)
        embed, denoise = model.embed_prefix, model.denoise_step
        signature, prefix = inspect.signature(denoise), dict[str, Any]()

        def embed_prefix(*given: Any, **named: Any) -> Any:
            self.num_encoded += size
            return embed(*given, **named)

        def denoise_step(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            x_t, timestep = arguments.pop("x_t"), arguments.pop("timestep")
            if not prefix:  # the same in every step
                prefix.update({name: repeated(value, count) for name, value in arguments.items()})
            return denoise(**prefix, x_t=x_t, timestep=timestep[:1].expand(len(x_t)))

        steps = {name: num_steps for name in ("num_steps", "num_inference_steps") if hasattr(config, name)}
        hooks = {"embed_prefix": embed_prefix, "denoise_step": denoise_step}
        with patched_attributes(model, **hooks), patched_attributes(config, **steps):
            return self.policy.predict_action_chunk(batch, noise=noise)

    def takes_history(self) -> bool:
        return False

    def chunk_length(self) -> int:
        return int(self.policy.config.chunk_size)

    def configured_steps(self) -> int:
        config = self.policy.config
        return int(getattr(config, "num_steps", None) or config.num_inference_steps)


def repeated(value: Any, count: int) -> Any:
    """Each row of each tensor `count` times, in dicts, lists, tuples, and transformers' caches of keys and values."""
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
def patched_attributes(thing: Any, **attributes: Any) -> Iterator[None]:
    """Sets attributes within the context; afterwards restores or removes them."""
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
