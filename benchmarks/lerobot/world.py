"""An embedded task for programs in other interpreters: lines of JSON in, lines of JSON out. Run by flow2one's interpreter.

    python benchmarks/lerobot/world.py <task> [<seed>]

{"start": i} resets to the stored test start i; {"action": [..]} steps. The first line says the task in words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import envs
from envs.panda.recording import stored_starts
from envs.specs import STATE

COUNT = 1000
"""Stored starts; a longer list begins with the shorter one."""


def main(task: str, seed: int) -> None:
    env, starts = envs.make(task), stored_starts(task, seed, "test", COUNT)
    say({"task": envs.task_spec(task).summary})
    for line in sys.stdin:
        message = json.loads(line)
        if "start" in message:
            observation, _ = env.reset(options={"start": starts[message["start"] % COUNT]})
            say({"state": observation[STATE].tolist()})
        else:
            observation, _, terminated, truncated, info = env.step(np.array(message["action"], np.float32))
            say({"state": observation[STATE].tolist(), "success": bool(info["is_success"]), "terminated": bool(terminated),
                 "truncated": bool(truncated)})  # fmt: skip


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
