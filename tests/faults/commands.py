"""The commands that are disturbed: a run, a conversion (fresh and in place), an export; all tiny."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.distill.twelve_episodes import twelve_episodes
from tests.faults.trying import ROOT, Prefixes, Server, contents

RUN = """\
name: tiny
demos: {train_starts: 1}
teacher: {training_steps: 20, batch_size: 8, warmup_steps: 5, candidates: 2, width: 16, depth: 1, heads: 2,
  horizon: 16, patch: 8}
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 24, shard_size: 4, batch_size: 4}
student: {objectives: [chamfer], default: chamfer, training_steps: 10, batch_size: 8, num_latents: 4, codes: 8,
  warmup_steps: 2, candidates: 2}
evaluate: {test_starts: 2, validation_starts: 2, teacher_steps: [2], execution_horizon: 16, selection: outlier_rejection,
  fidelity_observations: 3, fidelity_samples: 6, latency_calls: 4, latency_warmup: 1,
  latency_modes: [], frontier_samples: [1], baselines: []}
"""

CONVERSION = """\
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 12, shard_size: 4, batch_size: 4}
student: {training_steps: 4, batch_size: 4, num_latents: 3, codes: 4, warmup_steps: 1, candidates: 2, width: 16,
  depth: 1, code_shares: false}
in_place: {training_steps: 6, batch_size: 4, num_latents: 3, warmup_steps: 1, candidates: 2}
evaluate: {fidelity_observations: 3, fidelity_samples: 6, latency_calls: 3, latency_warmup: 1,
  latency_modes: [], test_starts: 2,
  validation_starts: 2, teacher_steps: [4], execution_horizon: 8, selection_candidates: 4}
"""

RUN_ARGV = ["--config", "tiny.yaml", "--processes", "1"]
CONVERT_ARGV = ["convert", "--teacher", "my_policy.py", "--config", "tiny.yaml", "--observations", "demos_given", "--out",
                "out", "--task", "avoid", "--student.kind", "both", "--processes", "1"]  # fmt: skip
EXPORT_ARGV = ["export", "--student", "runs/tiny/distill/chamfer", "--out", "exported"]


def _undisturbed(server: Server, work: Path, stored: Path, argv: list[str], folder: str, given: list[Path]) -> Prefixes:
    """Run the command without a fault, twice when it is the first of its kind: the first loads packages."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for path in given:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, work / path.name)
    modules = stored / "modules.json"
    stored.mkdir(parents=True)
    outcome = server.run(work, argv, modules=str(modules))
    assert outcome.status == 0, outcome.said
    server.warm_up(json.loads(modules.read_text()), work, argv)
    shutil.move(work / folder, stored / "whole")
    names = re.findall(r"^\[\d+/\d+\] (\S+): done in", outcome.said, re.MULTILINE)
    return Prefixes(stored / "whole", names, argv, folder, given, contents(stored / "whole"))


def tiny_run(server: Server, work: Path, stored: Path) -> Prefixes:
    """The whole recipe on `avoid`."""
    stored.parent.mkdir(parents=True, exist_ok=True)
    given = stored.parent / "given-run" / "tiny.yaml"
    given.parent.mkdir()
    given.write_text(RUN)
    return _undisturbed(server, work, stored, RUN_ARGV, "runs/tiny", [given])


def tiny_conversion(server: Server, work: Path, stored: Path) -> Prefixes:
    """examples/own_network.py distilled to a fresh student and fine-tuned in place."""
    given = stored.parent / "given-conversion"
    given.mkdir(parents=True)
    (given / "tiny.yaml").write_text(CONVERSION)
    shutil.copyfile(ROOT / "examples" / "own_network.py", given / "my_policy.py")
    twelve_episodes().save(given / "demos_given")
    return _undisturbed(server, work, stored, CONVERT_ARGV, "out", sorted(given.iterdir()))
