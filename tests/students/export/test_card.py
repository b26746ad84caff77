"""The model card: measured figures stand in it as they are, those that were not measured are said to be missing."""

from __future__ import annotations

from students.export.card import InferenceSettings, PolicyFigures, Provenance, model_card
from students.selection import Selection

DEFAULT = InferenceSettings(Selection("outlier_rejection", 16), 8, "run")
FILES = {"onnx": {"file": "student.onnx", "parity": {"largest_normalised": 2.4e-6, "inputs": 1000}}}
STUDENT = PolicyFigures("student", 1, 480, 478, 0.985, 0.9989, 0.9876, 24, 24, 3.061, 326.6, 200)


def test_a_card_holds_what_was_measured(make_student) -> None:
    student = make_student(latent_size=1)
    teacher = PolicyFigures("teacher, 50 steps", 50, 480, 477, 0.982, 0.998, 0.9912, 24, 24, 48.02, 20.8, 200)
    card = model_card(
        student, FILES, DEFAULT, STUDENT, teacher, Provenance("avoid-seed0", "0", "2026-11-21", "two cores"), "2026-11-22"
    )
    assert "| student | 1 | 99.6% (98.5% to 99.9%) | 480 | 24/24 | 0.988 | 3.06 | 327 |" in card
    assert "| teacher, 50 steps | 50 | 99.4% (98.2% to 99.8%) | 480 | 24/24 | 0.991 | 48.02 | 21 |" in card
    assert "run `avoid-seed0`, seed 0; date: 2026-11-21; hardware: two cores." in card
    assert "at most 2.4e-06 half ranges of an action, on 1,000 random observations" in card
    assert "`outlier_rejection` of 16 plans made in the one evaluation; 8 actions are executed per replan" in card
    assert f"{sum(value.numel() for value in student.parameters()):,} parameters" in card
    assert "not measured" not in card and "not recorded" not in card


def test_a_card_without_a_task_has_fidelity_and_time_and_no_success(make_student, make_teacher) -> None:
    student = PolicyFigures("student", 1, median_ms=3.061, hz=326.6, calls=200, energy_distance=0.0123, off_support_share=0.031)
    teacher = PolicyFigures("teacher", 10, median_ms=12.5, hz=80.0, calls=200, energy_distance=-0.0002, off_support_share=0.012)
    made = make_student(make_teacher(task="recorded"))
    card = model_card(made, FILES, DEFAULT, student, teacher, Provenance("out"), "2026-11-22")
    assert "\n# A one-step policy\n" in card
    assert "| policy | NFE | energy distance | off-support | ms | Hz |\n|---|---|---|---|---|---|\n" in card
    assert "| teacher | 10 | -0.0002 | 1.2% | 12.50 | 80 |\n| student | 1 | 0.0123 | 3.1% | 3.06 | 327 |" in card
    assert "Success was not measured: there was no task to roll out in" in card and "run `out`; date" in card
    assert "entropy" not in card and "in simulation" not in card


def test_a_card_says_what_is_missing(make_student) -> None:
    card = model_card(
        make_student(), {}, InferenceSettings(Selection(), 8, "default"), PolicyFigures("student"), None, Provenance(),
        "2026-11-22",
    )
    assert card.count("not measured |") == 7  # NFE, success, starts, modes, entropy, ms and Hz
    assert "no run was found; date: not recorded; hardware: not recorded" in card
    assert "The teacher was not measured" in card and "the default; no run says how it was measured" in card
    assert "%" not in card.split("## Measured")[1].split("| policy")[1].split("\n", 1)[1]


def test_a_card_opens_with_the_block_that_the_hub_reads(make_student) -> None:
    card = model_card(make_student(), FILES, DEFAULT, STUDENT, None, Provenance(), "2026-11-22")
    assert card.startswith("---\nlibrary_name: flow2one\n") and card.count("\n---\n") == 1
