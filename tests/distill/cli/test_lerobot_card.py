"""The model card of a LeRobot policy that was fine-tuned in place: its figures are the report's, and no stage changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.cli.lerobot_card import front_matter, write_card
from distill.store.manifest import commit, finished, partial_folder, write_json

MADE_FROM = {"execution_horizon": 4, "selection": "single", "candidates_of_selection": 16}


def policy(name: str, kind: str, label: str, nfe: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "label": label, "nfe": nfe, "candidates": 1, "difference": None,
        "fidelity": {"energy_distance": 0.0123, "off_support_share": 0.25}, "latency": {"median_ms": 1.5}, **more,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished conversion, as far as the card reads it, of an original whose card has a license."""
    original = tmp_path / "original"
    original.mkdir()
    (original / "README.md").write_text("---\nlicense: mit\nbase_model: someone/base\ntags: [old]\n---\n# Teacher, 99 %\n")
    folder = tmp_path / "run/distill/in_place"
    partial = partial_folder(folder, "k" * 64)
    (partial / "policy").mkdir(parents=True)
    adapter = {"file": "a.py", "arguments": {"path": str(original)}}
    write_json(partial / "config.json", {"kind": "in_place", "step": 90, "objective": "chamfer", "shape": {"horizon": 8},
                                         "adapter": adapter})  # fmt: skip
    write_json(partial / "policy/config.json", {"type": "smolvla", "n_action_steps": 4})
    write_json(partial / "policy/policy_preprocessor.json", {"steps": []})
    commit(folder, "k" * 64, MADE_FROM, 1.0)
    (tmp_path / "run/report").mkdir()
    report(tmp_path / "run", measured_success=False)
    return tmp_path / "run"


def report(run: Path, **changes: Any) -> None:
    rows = [policy("teacher_10", "teacher", "Teacher, 10 steps", 10), policy("in_place", "student", "Student, in place", 1),
            policy("chamfer", "student", "Student, fresh", 1)]  # fmt: skip
    found = {
        "policies": rows, "made": {"hardware": "two cores", "date": "2026-11-30", "seed": 3}, "measured_success": False,
        "data": {"observations": 64, "hypotheses_per_observation": 12}, "task": {"name": "lift", "summary": "Lift it."},
    }  # fmt: skip
    write_json(run / "report/report.json", found | changes)


def test_the_card_has_lerobots_front_matter_and_the_measured_figures(run: Path) -> None:
    written = write_card(run)
    assert written == run / "distill/in_place/policy/README.md"
    text, data = written.read_text(), front_matter(written)
    assert data == {
        "library_name": "lerobot", "pipeline_tag": "robotics", "model_name": "smolvla", "license": "mit",
        "base_model": "someone/base", "tags": ["robotics", "lerobot", "smolvla", "one-step", "flow2one"],
    }  # fmt: skip
    assert text.startswith("---\n") and yaml.safe_load(text.split("---")[1]) == data
    assert "| original, 10 steps | 10 | not measured | 0.012 | 25.0 % | 1.50 |" in text
    assert "| this policy | 1 | not measured |" in text and "fresh" not in text and "99 %" not in text
    assert "Success was not measured" in text and "64 observations with 12 chunks" in text and "90 steps" in text


def test_success_is_told_with_its_interval_and_how_it_was_measured(run: Path) -> None:
    figures = {"success_rate": 0.9, "success_low": 0.85, "success_high": 0.93, "successes": 180, "episodes": 200,
               "difference": -0.015, "difference_low": -0.04, "difference_high": 0.01, "candidates": 16}  # fmt: skip
    rows = [policy("teacher_10", "teacher", "Teacher, 10 steps", 10), policy("in_place", "student", "s", 1, **figures)]
    report(run, policies=rows, measured_success=True)
    write_json(run / "distill/in_place/policy/config.json", {"type": "smolvla", "n_action_steps": 6})
    text = (write_card(run) or Path()).read_text()
    assert "| this policy | 1 | 90.0 % (85.0 to 93.0), 180 of 200 |" in text
    assert "paired: -1.5 points (95 %: -4.0 to +1.0)" in text
    assert "best of 16 chunks" in text and "LeRobot draws one chunk" in text  # what LeRobot will do was not measured
    assert "LeRobot executes 6 actions per query, not 4" in text


def test_a_card_changes_no_stage_and_can_be_written_again(run: Path) -> None:
    stage = run / "distill/in_place"
    for seed in (3, 4):
        report(run, made={"hardware": "two cores", "date": "2026-11-30", "seed": seed})
        card = write_card(run)
        assert card is not None and f"Seed {seed}." in card.read_text()
        assert finished(stage, "k" * 64)  # verified, not done again


def test_no_card_is_written_for_what_is_not_lerobots(run: Path) -> None:
    (run / "distill/in_place/policy/policy_preprocessor.json").unlink()
    assert write_card(run) is None and not (run / "distill/in_place/policy/README.md").exists()


@pytest.mark.parametrize("text", ["", "# no front matter", "---\n: [\n---\n", "---\n- a list\n---\n", "x\n---\na: 1\n---\n"])
def test_a_card_without_metadata_gives_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path / "README.md") == {}
