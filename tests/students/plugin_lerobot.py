"""Run by LeRobot's interpreter: a student through LeRobot's factory, as `lerobot-eval` loads it, against the student itself.

    python plugin_lerobot.py <student's folder> <new folder>

Prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.factory import make_env_config
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

import envs
import lerobot_env_flow2one  # noqa: F401 - registers flow2one_avoid
from envs.panda.recording import stored_starts
from envs.specs import STATE
from students import load_student


def main(student: Path, folder: Path, episodes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    done = subprocess.run([sys.executable, "-m", "lerobot_policy_flow2one", str(student), str(folder), "4"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    register_third_party_plugins()  # what lerobot-eval does first
    config = PreTrainedConfig.from_pretrained(str(folder))
    config.pretrained_path = folder
    policy = make_policy(config, env_cfg=make_env_config("flow2one_avoid"))
    before, after = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides={
        "device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}},
    })  # fmt: skip
    ours = load_student(student)
    state = torch.rand(5, ours.shape.observation_steps, 2, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.3
    policy.reset()
    plan = policy.predict_action_chunk({STATE: state})
    draws = torch.randn(5 * policy.config.candidates, *ours.latent_shape, generator=torch.Generator().manual_seed(0))
    candidates = ours({STATE: state}, draws.unflatten(0, (5, -1)))
    apart = (plan[:, None] - candidates).abs().flatten(2).amax(-1).amin(1).max().item()

    policy.reset()
    queue = [policy.select_action({STATE: state[:, 0]}) for _ in range(5)]  # the fifth is the first of a new plan of four
    actions = {"action": torch.rand(5, ours.shape.horizon, 2), "action_is_pad": torch.zeros(5, ours.shape.horizon, dtype=bool)}
    loss, parts = policy.train().forward({STATE: state, **actions})
    loss.backward()
    successes = 0
    for start in stored_starts("avoid", 0, "test", episodes) if episodes else ():
        env = envs.make("avoid")
        observation, _ = env.reset(options={"start": start})
        policy.reset()
        over = False
        while not over:
            batch = before({STATE: torch.from_numpy(observation[STATE])})
            observation, _, terminated, truncated, info = env.step(after(policy.select_action(batch))[0].numpy())
            over = terminated or truncated
        successes += bool(info["is_success"])
    return {
        "type": config.type, "class": type(policy).__name__, "apart": apart, "plan": list(plan.shape),
        "action": list(queue[0].shape), "left": len(policy._planned), "loss": loss.item(), "parts": sorted(parts),
        "gradient": any(each.grad is not None and bool(each.grad.any()) for each in policy.get_optim_params()),
        "successes": successes, "episodes": episodes,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
