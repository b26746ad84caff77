"""Run by LeRobot's interpreter: a tiny policy with random weights, saved by LeRobot, and what the adapter makes of it.

    python tiny_lerobot.py <kind> <folder> <teachers/adapters/lerobot_policies.py>

Prints one line of JSON. Kinds: those of KINDS.
"""

from __future__ import annotations

import importlib.util
import json
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature

STATE, FRONT, SIZE = "observation.state", "observation.images.front", 32
STATISTICS = {
    STATE: {"mean": torch.tensor([1.0, 2.0, 3.0]), "std": torch.full((3,), 2.0), "min": torch.full((3,), -4.0),
            "max": torch.full((3,), 8.0)},
    "action": {"mean": torch.tensor([10.0, 20.0]), "std": torch.full((2,), 3.0), "min": torch.tensor([5.0, 15.0]),
               "max": torch.tensor([15.0, 25.0])},
    FRONT: {name: torch.full((3, 1, 1), value) for name, value in (("mean", 0.5), ("std", 0.25), ("min", 0.0), ("max", 1.0))},
}  # fmt: skip
for each in STATISTICS.values():
    each.update(q01=each["min"], q99=each["max"])
FEATURES: dict[str, Any] = {
    "input_features": {
        STATE: PolicyFeature(FeatureType.STATE, (3,)), FRONT: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    "device": "cpu",
}  # fmt: skip


def words(folder: Path, special: dict[str, str] | None = None) -> Path:
    """A tokenizer of single characters, saved as transformers does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<unk>", "<s>", "</s>", *(special or {}).values(), *string.printable]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(dict.fromkeys(known))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", extra_special_tokens=special or {})  # fmt: skip
    fast.save_pretrained(str(folder))
    return folder


def diffusion(folder: Path, prediction: str = "epsilon", scheduler: str = "DDIM") -> tuple[Any, Callable[[Any], Any]]:
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    config = DiffusionConfig(
        n_obs_steps=2, horizon=8, n_action_steps=4, down_dims=(16, 32), n_groups=4, diffusion_step_embed_dim=16,
        crop_shape=(28, 28), spatial_softmax_num_keypoints=4, num_train_timesteps=20, num_inference_steps=5,
        noise_scheduler_type=scheduler, prediction_type=prediction, pretrained_backbone_weights=None,
        use_group_norm=True, **FEATURES,
    )  # fmt: skip
    return config, lambda policy: policy.diffusion.rgb_encoder[0]


def multi_task_dit(folder: Path, objective: str = "flow_matching") -> tuple[Any, Callable[[Any], Any]]:
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes, reader = folder / "clip-eyes", words(folder / "clip-reader")
    CLIPVisionModel(CLIPVisionConfig(image_size=SIZE, patch_size=16, **small)).save_pretrained(str(eyes))
    CLIPTextModel(CLIPTextConfig(vocab_size=200, max_position_embeddings=32, **small)).save_pretrained(str(reader))
    config = MultiTaskDiTConfig(
        n_obs_steps=2, horizon=8, n_action_steps=4, objective=objective, hidden_dim=32, num_layers=1, num_heads=2,
        num_integration_steps=5, num_inference_steps=5, num_train_timesteps=20, vision_encoder_name=str(eyes),
        text_encoder_name=str(reader), tokenizer_max_length=16, image_resize_shape=None, image_crop_shape=None, **FEATURES,
    )  # fmt: skip
    return config, lambda policy: policy.observation_encoder.vision_encoder


def smolvla(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    special = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
               "end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>"}  # fmt: skip
    vlm = words(folder / "vlm", special)
    text = {"model_type": "llama", "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}  # fmt: skip
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 16}  # fmt: skip
    SmolVLMConfig(text_config=text, vision_config=eyes, scale_factor=2, image_token_id=5).save_pretrained(str(vlm))
    from transformers import AutoTokenizer

    SmolVLMProcessor(SmolVLMImageProcessor(), AutoTokenizer.from_pretrained(str(vlm)), SmolVLMVideoProcessor()).save_pretrained(
        str(vlm)
    )
    config = SmolVLAConfig(
        chunk_size=6, n_action_steps=6, max_state_dim=8, max_action_dim=5, resize_imgs_with_padding=(32, 32), num_steps=5,
        vlm_model_name=str(vlm), load_vlm_weights=False, num_vlm_layers=2, num_expert_layers=2, self_attn_every_n_layers=2,
        tokenizer_max_length=16, **FEATURES,
    )  # fmt: skip
    return config, lambda policy: policy.model.vlm_with_expert.get_vlm_model().vision_model


def shrink(kind: str, folder: Path) -> None:
    """pi0's and pi05's networks with thousands of weights instead of billions, and a tokenizer of single characters."""
    import lerobot.processor.tokenizer_processor as tokenizers
    from transformers import GemmaConfig, PaliGemmaConfig

    model = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    small = model.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
    model.get_gemma_config = lambda variant: small
    fixed = {"projection_dim": 32, "intermediate_size": 64, "vocab_size": 300}  # LeRobot sets them to the full network's

    def kept(config: Any) -> Any:
        own = type(config)
        changed = {"__setattr__": lambda self, name, value: own.__setattr__(self, name, fixed.get(name, value))}
        config.__class__ = type(own.__name__, (own,), changed)
        return config

    def paligemma() -> Any:
        eyes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16, "image_size": SIZE,
                "projection_dim": 32, "intermediate_size": 64}  # fmt: skip
        made = PaliGemmaConfig(text_config={"model_type": "gemma", "vocab_size": 300, "hidden_size": 32}, vision_config=eyes)
        kept(made.text_config), kept(made.vision_config)
        return made

    model.CONFIG_MAPPING = {"paligemma": paligemma, "gemma": lambda **given: GemmaConfig(**{**given, "vocab_size": 300})}
    reader, load = words(folder / "paligemma"), tokenizers.AutoTokenizer.from_pretrained
    tokenizers.AutoTokenizer.from_pretrained = lambda name, *given, **named: load(str(reader), *given, **named)


def pi0(folder: Path, kind: str = "pi0", relative: bool = False) -> tuple[Any, Callable[[Any], Any]]:
    shrink(kind, folder)
    module = importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    config = getattr(module, f"{kind.upper()}Config")(
        chunk_size=6, n_action_steps=6, max_state_dim=8, max_action_dim=5, num_inference_steps=5, image_resolution=(SIZE, SIZE),
        tokenizer_max_length=96, use_relative_actions=relative, **FEATURES,
    )  # fmt: skip
    return config, lambda policy: policy.model.paligemma_with_expert.paligemma.model.vision_tower


def pi05(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    return pi0(folder, "pi05")


def xvla(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig

    reader = words(folder / "bart")
    text = {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
            "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
    eyes = {"embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3],
            "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 2,
            "projection_dim": 32, "max_position_embeddings": 10, "max_temporal_embeddings": 4}  # fmt: skip
    config = XVLAConfig(
        chunk_size=6, n_action_steps=6, florence_config={"vision_config": eyes, "text_config": text},
        tokenizer_name=str(reader), tokenizer_max_length=16, hidden_size=32, depth=1, num_heads=2, num_domains=2,
        len_soft_prompts=2, max_len_seq=64, action_mode="auto", num_denoising_steps=5, max_state_dim=8, max_action_dim=5,
        normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}, **FEATURES,
    )  # fmt: skip
    return config, lambda policy: policy.model.vlm.vision_tower


KINDS: dict[str, Callable[[Path], tuple[Any, Callable[[Any], Any]]]] = {
    "diffusion": diffusion, "diffusion_sample": lambda folder: diffusion(folder, "sample", "DDPM"),
    "multi_task_dit": multi_task_dit, "multi_task_dit_diffusion": lambda folder: multi_task_dit(folder, "diffusion"),
    "smolvla": smolvla, "pi0": pi0, "pi05": pi05, "xvla": xvla,
    "pi0_relative": lambda folder: pi0(folder, relative=True),
}  # fmt: skip
"""Config and vision tower of each."""


def saved_policy(kind: str, folder: Path) -> Path:
    """A tiny policy with random weights, saved by LeRobot; the folder."""
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config, _ = KINDS[kind](folder)
    policy = get_policy_class(config.type)(config)
    with torch.no_grad():  # what a fresh network multiplies by zero would hide what it sees
        for value in policy.parameters():
            value.add_(0.05 * torch.randn_like(value))
    saved = folder / "pretrained_model"
    policy.save_pretrained(str(saved))
    for processor in make_pre_post_processors(config, dataset_stats=STATISTICS):
        processor.save_pretrained(str(saved))
    return saved


def main(kind: str, folder: Path, adapter: Path) -> dict[str, Any]:
    eyes_of, saved = KINDS[kind](folder)[1], saved_policy(kind, folder)

    spec = importlib.util.spec_from_file_location("flow2one_adapter", adapter)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    teacher = module.build(path=str(saved), instruction="lift the cube", steps="4")
    seen = {STATE: torch.randn(3, teacher.observation_steps, 3), FRONT: torch.rand(3, teacher.observation_steps, 3, SIZE, SIZE)}
    calls = []
    eyes_of(teacher.policy).register_forward_hook(lambda *given: calls.append(1))

    def draw(count: int, seed: int, observation: dict[str, torch.Tensor] = seen) -> torch.Tensor:
        return teacher.sample(observation, count, 4, torch.Generator().manual_seed(seed))

    chunks = draw(8, 0)
    looks, encoded = len(calls), teacher.num_encoded
    first = {name: value[1:2] for name, value in seen.items()}
    alone = torch.cat([draw(1, seed, first) for seed in range(64)])[:, 0]
    together = draw(64, 99, first)[0]
    flat = chunks.flatten(2)
    apart = [float(torch.cdist(each, each)[~torch.eye(8, dtype=bool)].min()) for each in flat]
    return {
        "shape": list(chunks.shape), "horizon": teacher.horizon, "action_size": teacher.action_size,
        "observation_steps": teacher.observation_steps, "num_steps": teacher.num_steps, "features": teacher.features,
        "evaluations": teacher.evaluations(4), "looks": looks, "encoded": encoded, "gradient": chunks.requires_grad,
        "finite": bool(chunks.isfinite().all()), "same": bool(torch.equal(chunks, draw(8, 0))),
        "other": bool(torch.equal(chunks, draw(8, 1))), "nearest_two": min(apart),
        "mean_alone": alone.mean((0, 1)).tolist(), "mean_together": together.mean((0, 1)).tolist(),
        "std_alone": alone.std(0).mean().item(), "std_together": together.std(0).mean().item(),
        "whole": whole(kind, teacher, seen, draw),
    }  # fmt: skip


def whole(kind: str, teacher: Any, seen: dict[str, torch.Tensor], draw: Callable[..., torch.Tensor]) -> float:
    """How far the K chunks are from those of LeRobot's own sampler, given the prefix K times over and the same noise."""
    many = {name: value.repeat_interleave(8, 0) for name, value in seen.items()}
    return float((draw(8, 0).flatten(0, 1) - draw(1, 0, many).flatten(0, 1)).abs().max())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
