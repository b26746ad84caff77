"""`lerobot-eval` itself, with the network evaluations counted. Run by LeRobot's interpreter, without flow2one.

    python benchmarks/lerobot/counted_eval.py <file for the counts> --policy.path=<folder> ..    (flags of lerobot-eval)

Counts queries (the text encoder runs once in each), evaluations of the action head, and the chunks in each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import CLIPTextEncoder, DiffusionTransformer
from lerobot.scripts.lerobot_eval import main

OURS = ("flow2one", "distill", "students", "teachers", "envs")


def counted() -> dict[str, int]:
    """Counts that grow with every call of these modules."""
    counts = {"queries": 0, "evaluations": 0, "chunks": 0}

    def count(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, DiffusionTransformer):
            counts["evaluations"] += 1
            counts["chunks"] += len(given[0])
        elif isinstance(module, CLIPTextEncoder):
            counts["queries"] += 1

    torch.nn.modules.module.register_module_forward_pre_hook(count)
    return counts


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    torch.set_num_threads(1)
    found = counted()
    main()
    ours = sorted(name for name in sys.modules if name.split(".")[0] in OURS)
    file.write_text(json.dumps({**found, "modules_of_flow2one": ours}))
