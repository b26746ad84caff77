"""Run by LeRobot's interpreter: a tiny policy is fine-tuned in place and saved; and what plain LeRobot makes of the folder.

    python in_place_lerobot.py train <kind> <folder> <root of flow2one>     trains, saves to folder/one_step
    python in_place_lerobot.py plain <folder>                               loads that with LeRobot's classes alone

Each prints one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INSTRUCTION, SEED = "lift the cube", 7


def load(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("flow2one_" + path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


EYES: dict[str, Any] = {
    "diffusion": lambda policy: policy.diffusion.rgb_encoder[0], "xvla": lambda policy: policy.model.vlm.vision_tower,
    "multi_task_dit": lambda policy: policy.observation_encoder.vision_encoder,
    "smolvla": lambda policy: policy.model.vlm_with_expert.get_vlm_model().vision_model,
    "pi0": lambda policy: policy.model.paligemma_with_expert.paligemma.model.vision_tower,
    "pi05": lambda policy: policy.model.paligemma_with_expert.paligemma.model.vision_tower,
}  # fmt: skip
"""The vision tower of each kind, to count how often it looks."""


def train(kind: str, folder: Path, root: Path) -> dict[str, Any]:
    """A few steps by the shared losses, as the adapter's process does them."""
    tiny = load(root / "tests/teachers/adapters/tiny_lerobot.py")
    adapters = root / "teachers/adapters"
    seeded, one_step, training = (load(adapters / f"{name}.py") for name in ("seeded", "one_step", "training"))
    losses, adapter = load(root / "distill/hypotheses/distances.py"), load(adapters / "lerobot_policies.py")
    saved = tiny.saved_policy(kind, folder)
    built = adapter.build(str(saved), INSTRUCTION, steps="4")
    assert one_step.obstacle(built) == "", one_step.obstacle(built)
    policy = one_step.OneStepPolicy(seeded.adapt(built, None))
    steps = built.observation_steps
    seen = {tiny.STATE: torch.randn(4, steps, 3), tiny.FRONT: torch.rand(4, steps, 3, tiny.SIZE, tiny.SIZE)}
    faults = policy.faults({name: value.clone() for name, value in seen.items()})
    hypotheses = built.sample(seen, 6, 4, torch.Generator().manual_seed(0)).numpy()
    before = {name: value.clone() for name, value in built.policy.state_dict().items()}
    options = {"terms": [[1.0, "chamfer"]], "paired": False, "samples": 3, "at_once": 2, "weight_decay": 0.0, "autocast": "",
               "budget_bytes": 1 << 30, "starting_noises": 0, "seed": 0, "rows": 4}  # fmt: skip
    horizon, size = hypotheses.shape[2:]
    ones = torch.ones(size).numpy()
    arrays = {"weights": torch.ones(horizon, size).numpy(), "centre": 0 * ones, "scale": 10 * ones}
    with one_step.trainable(built, policy.trained()):
        fitted = training.InPlaceTraining(policy, losses, options, arrays)
        kept = fitted.observe(0, seen, hypotheses, torch.zeros(4, 6, dtype=torch.int64).numpy())
        first = fitted._accumulate([0, 1, 2, 3], torch.Generator().manual_seed(1))
        gradients = {name: value.grad for name, value in fitted.trained.items()}
        told = fitted.steps([[0, 1, 2, 3]] * 8, list(range(8)), [3e-3] * 8, [0.5] * 8)
        after_loss = fitted._accumulate([0, 1, 2, 3], torch.Generator().manual_seed(1))
        fitted.write(folder / "model.safetensors")
    policy.load(load_file(str(folder / "model.safetensors")))
    built.save(str(folder / "one_step"))
    again = one_step.OneStepPolicy(seeded.adapt(built.reload(str(folder / "one_step")), None))
    seeds = [[1, 2, 3]] * 4
    mine, its = (each.head(each.encode(seen), seeds, 1) for each in (policy, again))

    # what plain LeRobot will be asked: its own noise, one observation after the other
    torch.manual_seed(SEED)
    noise = torch.randn(4, *policy.noise_shape)
    with torch.no_grad():
        expected = policy.chunks(policy.encode(seen), noise)
    save_file({**seen, "expected": expected.contiguous()}, str(folder / "asked.safetensors"))
    after, trained = built.policy.state_dict(), set(policy.trained())
    old, new = (load_file(str(path / "model.safetensors")) for path in (saved, folder / "one_step"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    config = json.loads((folder / "one_step/config.json").read_text())
    return {
        "faults": faults, "bytes": kept["bytes"], "loss": [first, after_loss], "mean_loss": told["loss"],
        "finite": all(bool(each.isfinite().all()) for each in gradients.values() if each is not None),
        "with_gradient": sum(each is not None and bool((each != 0).any()) for each in gradients.values()),
        "without_gradient": sorted(name for name, each in gradients.items() if each is None), "weights": len(trained),
        "same_names": sorted(old) == sorted(new),
        "saved_outside": sorted(
            name for name in old if f"policy.{name}" not in trained and not torch.equal(old[name], new[name])
        ),
        "changed_outside": sorted(name for name in changed if f"policy.{name}" not in trained), "changed": len(changed),
        "reloaded": float((mine - its).abs().max()), "spread": float(mine.std()), "steps": built.teacher.num_steps,
        "config": {name: config.get(name) for name in config if "steps" in name or name == "prediction_type"},
        "files": sorted(path.name for path in (folder / "one_step").iterdir()),
    }  # fmt: skip


def plain(folder: Path) -> dict[str, Any]:
    """The folder in LeRobot's own classes: chunks of the same noise, and how often the head was evaluated."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    ours = [name for name in sys.modules if name.split(".")[0] in ("teachers", "distill", "envs", "students")]
    saved = str(folder / "one_step")
    kind = json.loads((folder / "one_step/config.json").read_text())["type"]
    if kind.startswith("pi"):  # the sizes of the test's networks
        load(Path(__file__).parent / "tiny_lerobot.py").shrink(kind, folder)
    importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    config = PreTrainedConfig.from_pretrained(saved, local_files_only=True)
    config.device = "cpu"
    policy = get_policy_class(kind).from_pretrained(saved, config=config, local_files_only=True, strict=True).eval()
    before, after = make_pre_post_processors(config, pretrained_path=saved)
    held = load_file(str(folder / "asked.safetensors"))
    expected = held.pop("expected")
    has_history = kind in ("multi_task_dit", "diffusion")
    batch = before({**{name: value if has_history else value[:, -1] for name, value in held.items()},
                    "task": [INSTRUCTION] * len(expected)})  # fmt: skip
    calls, looks = list[int](), list[int]()
    EYES[kind](policy).register_forward_hook(lambda *given: looks.append(1))
    if kind == "multi_task_dit":
        policy.noise_predictor.register_forward_hook(lambda *given: calls.append(1))
        batch["observation.images"] = torch.stack([batch[name] for name in config.image_features], dim=-4)
        torch.manual_seed(SEED)
        with torch.no_grad():
            chunks = policy._generate_actions(dict(batch))
    elif kind == "diffusion":
        policy.diffusion.unet.register_forward_hook(lambda *given: calls.append(1))
        torch.manual_seed(SEED)
        chunks = policy.predict_action_chunk(batch, noise=torch.randn(len(expected), config.horizon, 2))
    elif kind == "xvla":
        policy.model.transformer.register_forward_hook(lambda *given: calls.append(1))
        torch.manual_seed(SEED)
        chunks = policy.predict_action_chunk(batch)
    else:
        step = policy.model.denoise_step
        policy.model.denoise_step = lambda **given: calls.append(1) or step(**given)  # type: ignore[func-returns-value]
        torch.manual_seed(SEED)
        noise = torch.randn(len(expected), config.chunk_size, config.max_action_dim)
        chunks = policy.predict_action_chunk(batch, noise=noise)
    raw = after(chunks)
    difference = float((raw - expected[:, : raw.shape[1]]).abs().max())
    return {"calls": len(calls), "looks": len(looks), "difference": difference, "ours": ours, "shape": list(raw.shape),
            "spread": float(raw.std())}  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "train":
        print(json.dumps(train(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        print(json.dumps(plain(Path(sys.argv[2]))))
