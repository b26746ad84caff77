"""Train a small `multi_task_dit` by flow matching with LeRobot's own classes. Run by LeRobot's interpreter, without flow2one.

    python benchmarks/lerobot/train.py <dataset> <folder> [--steps 4000] [--chunk 16] [--executed 16] [--seed 0]

Writes <folder>/pretrained_model. The policy observes the state and its instruction, no camera. The dataset is read and
normalised once and stays in memory (`lerobot-train` does it for every batch); the saved weights are an average.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.utils.feature_utils import dataset_to_policy_features
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

AVERAGE = 0.005
"""By how much the average moves to the trained weights in a step."""


def text_encoder(folder: Path) -> Path:
    """A CLIP text encoder of 16 units with random weights, which LeRobot freezes, and a tokenizer of single characters.

    There is one instruction, of which any encoder makes a constant.
    """
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *string.printable])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(str(folder))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=128, **small)).save_pretrained(str(folder))
    return folder


def windows_of(dataset: LeRobotDataset, config: MultiTaskDiTConfig) -> list[dict[str, Any]]:
    """All windows as LeRobot's reader gives them one by one: within its episode, the last action repeated after the end."""
    columns = dataset.hf_dataset.with_format("torch")
    held = {name: torch.stack(list(columns[name])) for name in ("observation.state", "action", "episode_index")}
    episode = held.pop("episode_index")
    first, last = (torch.searchsorted(episode, episode, right=right) for right in (False, True))
    times = {"observation.state": config.observation_delta_indices, "action": config.action_delta_indices}
    found: dict[str, Any] = {}
    for name, deltas in times.items():
        rows = torch.arange(len(episode))[:, None] + torch.tensor(deltas)
        found[name] = held[name][rows.clamp(first[:, None], last[:, None] - 1)]
    task = dataset.meta.tasks.index[0]
    return [{name: value[rows] for name, value in found.items()} | {"task": [task] * len(rows)}
            for rows in torch.arange(len(episode)).split(1024)]  # fmt: skip


def made(root: Path, folder: Path, chunk: int, executed: int) -> tuple[MultiTaskDiTPolicy, dict[str, Any], Any]:
    """A fresh policy, all windows of the dataset as its preprocessor gives them, and both processors."""
    dataset = LeRobotDataset(root.name, root=root)
    features = dataset_to_policy_features(dataset.meta.features)
    actions = {name: each for name, each in features.items() if each.type is FeatureType.ACTION}
    reader = str(text_encoder(folder / "clip").resolve())
    config = MultiTaskDiTConfig(
        n_obs_steps=2, horizon=chunk + 1, n_action_steps=executed, objective="flow_matching", num_integration_steps=10,
        timestep_sampling_strategy="uniform", hidden_dim=48, num_layers=2, num_heads=3, timestep_embed_dim=64, dropout=0.0,
        text_encoder_name=reader, vision_encoder_name=reader, tokenizer_max_length=16, image_crop_shape=None, device="cpu",
        input_features={name: each for name, each in features.items() if name not in actions}, output_features=actions,
    )  # fmt: skip
    windows = windows_of(dataset, config)
    processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    batches = [processors[0](batch) for batch in windows]
    names = [name for name, value in batches[0].items() if isinstance(value, Tensor)]
    return MultiTaskDiTPolicy(config), {name: torch.cat([each[name] for each in batches]) for name in names}, processors


def train(policy: MultiTaskDiTPolicy, windows: dict[str, Any], steps: int, rate: float, batch: int) -> float:
    """Flow matching by the policy's own `forward`; leaves the averaged weights in it. Returns the last loss."""
    policy.train()
    trained = [each for each in policy.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.03)
    average, began = [each.detach().clone() for each in trained], time.monotonic()
    for step in range(steps):
        row = torch.randint(len(windows["action"]), (batch,))
        loss, _ = policy.forward({name: value[row] for name, value in windows.items()})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [each.detach() for each in trained], max(AVERAGE, 1 / (step + 1)))
        if step % 250 == 0:
            print(f"step {step}: loss {float(loss.detach()):.4f}, {time.monotonic() - began:.0f} s", flush=True)
    with torch.no_grad():
        for weight, mean in zip(trained, average, strict=True):
            weight.copy_(mean)
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--executed", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True)
    policy, windows, processors = made(options.dataset, options.folder, options.chunk, options.executed)
    loss = train(policy, windows, options.steps, options.rate, options.batch)
    saved = options.folder / "pretrained_model"
    for each in (policy, *processors):
        each.save_pretrained(str(saved))
    head = sum(each.numel() for each in policy.noise_predictor.parameters())
    told = {"cpu_s": time.process_time(), "loss": loss, "steps": options.steps, "head_parameters": head}
    (options.folder / "training.json").write_text(json.dumps(told))
    print(told)


if __name__ == "__main__":
    main()
