"""The graph of a run: which stages a change of the config makes again, and which it must leave alone."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from distill.checks import check_teacher_folder
from distill.config import Config
from distill.graphs.run import run_graph
from distill.objectives.recipes import RECIPES
from distill.worlds import open_world
from students.selection import KINDS
from teachers.diffusion import DiffusionTeacher

BASE = Config()
# a student that selects among its samples: its settings count
BASE = replace(BASE, evaluate=replace(BASE.evaluate, teacher_steps=(4, 1), selection="outlier_rejection"),
               student=replace(BASE.student, objectives=("regression", "chamfer"), default="chamfer"))  # fmt: skip
STUDENTS = ("regression", "chamfer")
TRAINED = {f"train/{name}" for name in STUDENTS}
CHOSEN = {f"distill/{name}" for name in STUDENTS}
EVALUATED = {"evaluate/teacher_4", "evaluate/teacher_1", "evaluate/nearest_demonstration",
             *(f"evaluate/{name}" for name in STUDENTS)}  # fmt: skip
TIMED = {"latency", "report"}
END = {"frontier"} | TIMED
NEW_SCENES = {"generalisation"}
SELECTED = CHOSEN | {f"evaluate/{name}" for name in STUDENTS} | NEW_SCENES | END
"""What rolls a student out, which selects among its samples: checkpoints are chosen by rollouts, too."""
STUDENT_ON = TRAINED | SELECTED
TEACHER_ON = {"teach", "sample", "reference"} | TRAINED | CHOSEN | EVALUATED | NEW_SCENES | END
ALL = {"demos", "starts", "train/teacher"} | TEACHER_ON


def _keys(config: Config) -> dict[str, str]:
    return {stage.name: stage.key for stage in run_graph(config, open_world(config)).stages}


def _with(base: Config, flag: str, value: Any) -> Config:
    section, _, name = flag.rpartition(".")
    old = getattr(base, section) if section else base
    assert getattr(old, name) != value, f"{flag} is {value} already"
    return replace(base, **{section: replace(old, **{name: value})}) if section else replace(base, **{name: value})


def _changed(flag: str, value: Any, base: Config = BASE) -> set[str]:
    """The stages whose key differs when one flag of the base config does."""
    before, after = _keys(base), _keys(_with(base, flag, value))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_stages_stand_in_the_order_of_their_needs() -> None:
    names = [stage.name for stage in run_graph(BASE, open_world(BASE)).stages]
    assert set(names) == ALL and len(names) == len(ALL)
    needs = [("demos", "train/teacher"), ("train/teacher", "teach"), ("teach", "sample"), ("sample", "train/chamfer"),
             ("train/chamfer", "distill/chamfer"), ("distill/chamfer", "evaluate/chamfer"),
             ("reference", "evaluate/chamfer"), ("evaluate/chamfer", "latency"), ("latency", "report")]  # fmt: skip
    assert all(names.index(first) < names.index(second) for first, second in needs)


CHANGES: list[tuple[str, Any, set[str]]] = [
    ("task", "detour", ALL),
    ("seed", 1, ALL),
    ("demos.train_starts", 3, {"demos", "train/teacher"} | TEACHER_ON),
    ("demos.episodes", 7, {"demos", "train/teacher"} | TEACHER_ON),
    ("demos.noise_m", 0.001, {"demos", "train/teacher"} | TEACHER_ON),
    ("teacher.width", 64, {"train/teacher"} | TEACHER_ON),
    ("teacher.training_steps", 7, {"train/teacher"} | TEACHER_ON),
    ("teacher.solver", "heun", {"train/teacher"} | TEACHER_ON),
    ("teacher.kind", "diffusion", {"train/teacher"} | TEACHER_ON),
    ("teacher.time_power", 2.0, {"train/teacher"} | TEACHER_ON),
    ("teacher.observation_steps", 1, {"starts", "train/teacher"} | TEACHER_ON),
    ("sample.num_hypotheses", 5, {"sample"} | STUDENT_ON),
    ("sample.num_steps", 3, {"sample"} | STUDENT_ON),
    ("sample.solver", "heun", {"sample"} | STUDENT_ON),
    ("sample.solver", "shrinking", set()),  # what "" stands for
    ("sample.num_steps", 8, set()),  # what 0 stands for
    ("sample.num_observations", 99, {"sample"} | STUDENT_ON),
    ("sample.replanning_share", 0.1, {"sample"} | STUDENT_ON),
    ("sample.perturbation", 0.2, {"sample"} | STUDENT_ON),
    ("student.training_steps", 7, STUDENT_ON),
    ("student.learning_rate", 0.5, STUDENT_ON),
    ("student.warm_start", False, STUDENT_ON),
    ("student.codes", 0, STUDENT_ON),
    ("student.code_shares", False, STUDENT_ON),
    ("student.width", 64, STUDENT_ON),
    ("student.depth", 3, STUDENT_ON),
    ("student.default", "regression", {"frontier", "report"}),
    ("student.objectives", ("regression", "chamfer", "chamfer_energy"),
     {"train/chamfer_energy", "distill/chamfer_energy", "evaluate/chamfer_energy"} | NEW_SCENES | TIMED),
    ("evaluate.test_starts", 9, {"starts", "reference"} | EVALUATED | NEW_SCENES | END),
    ("evaluate.fidelity_samples", 9, {"reference"} | EVALUATED | END),
    ("evaluate.fidelity_observations", 9, {"starts", "reference"} | EVALUATED | NEW_SCENES | END),
    # a teacher carries out one sample whatever is said of the students
    ("evaluate.selection", "single", SELECTED),
    ("evaluate.selection", "kept_latent", SELECTED),
    ("evaluate.selection", "temporal_consistency", SELECTED),
    ("evaluate.selection_candidates", 9, SELECTED),
    ("evaluate.forget_every", 9, set()),  # a typical plan is so whatever the last one was
    ("evaluate.latency_calls", 9, END),
    ("evaluate.latency_modes", ("compile",), END),
    ("evaluate.frontier_samples", (1, 2), {"frontier", "report"}),
    ("evaluate.teacher_steps", (4, 1, 2), {"evaluate/teacher_2"} | TIMED),
    ("evaluate.baselines", (), {"evaluate/nearest_demonstration"} | TIMED),
    ("name", "other", {"report"}),
    ("runs_dir", Path("elsewhere"), set()),
    ("processes", 2, set()),
    ("wandb", "offline", set()),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "value", "expected"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_changed_flag_makes_again_what_depends_on_it_and_nothing_else(
    flag: str, value: Any, expected: set[str]
) -> None:
    assert _changed(flag, value) == expected


def test_what_a_selection_does_not_look_at_changes_nothing() -> None:
    kinds = ("single", "temporal_consistency", "kept_latent")
    one, consistent, kept = (_with(BASE, "evaluate.selection", kind) for kind in kinds)
    assert _changed("evaluate.selection_candidates", 9, consistent) == SELECTED
    assert _changed("evaluate.forget_every", 9, consistent) == SELECTED
    assert _changed("evaluate.forget_every", 9, kept) == SELECTED - {"frontier"}  # which needs several samples
    assert _changed("evaluate.selection_candidates", 9, kept) == set()
    # of one sample nothing is selected or forgotten
    assert _changed("evaluate.selection_candidates", 9, one) == _changed("evaluate.forget_every", 9, one) == set()


def test_the_students_selection_has_its_own_keys_and_leaves_the_teachers_alone() -> None:
    kinds = [BASE, *(_with(BASE, "evaluate.selection", kind) for kind in KINDS if kind != BASE.evaluate.selection)]
    keys = [_keys(config) for config in kinds]
    assert sum("frontier" in each for each in keys) == 2  # of the kinds that compare samples
    for stage in ALL - {"frontier"}:
        assert len({each[stage] for each in keys}) == (len(KINDS) if stage in SELECTED else 1), stage


def test_a_solver_that_is_named_is_the_one_that_is_taken_without_a_name() -> None:
    assert _changed("teacher.solver", "euler") == set()
    diffusion = _with(BASE, "teacher.kind", "diffusion")
    assert _changed("teacher.solver", "ddim", diffusion) == set() != _changed("teacher.solver", "ddpm", diffusion)


def test_a_recipe_is_made_again_for_what_it_is_made_from() -> None:
    """Hypotheses: reflow and the sets; demonstrations: the other rivals, and imle_policy even without a teacher."""
    base = replace(BASE, student=replace(BASE.student, objectives=tuple(RECIPES), default="chamfer"))
    trained = {f"train/{name}" for name in RECIPES}
    demonstrated = {f"train/{name}" for name, recipe in RECIPES.items() if recipe.data == "demonstrations"}
    assert demonstrated == {"train/imle_policy", "train/consistency", "train/shortcut", "train/mean_flow"}

    def again(flag: str, value: Any) -> set[str]:
        return {name for name in _changed(flag, value, base) if name.startswith("train/") and name != "train/teacher"}

    for flag, value in (("demos.noise_m", 0.001), ("demos.episodes", 7), ("evaluate.execution_horizon", 9),
                        ("student.latent_size", 9), ("teacher.width", 64), ("teacher.training_steps", 7)):  # fmt: skip
        assert again(flag, value) == trained, flag
    assert again("sample.num_observations", 9) == trained - demonstrated
    # the rivals have a learning rate of their own
    rivals = {"train/reflow", "train/consistency", "train/shortcut", "train/mean_flow"}
    assert again("student.learning_rate", 0.5) == trained - rivals
    # no teacher: only its sizes and its number of steps are shared, not how it is trained
    for flag, value in (("teacher.learning_rate", 0.5), ("teacher.kind", "diffusion"), ("student.training_steps", 7),
                        ("evaluate.validation_starts", 9)):  # fmt: skip
        assert again(flag, value) == trained - {"train/imle_policy"}, flag


@pytest.mark.parametrize("flag", ["evaluate.validation_starts", "evaluate.execution_horizon"])
def test_the_choice_of_checkpoints_is_made_again_without_training_the_teacher_again(flag: str) -> None:
    changed = _changed(flag, 9)
    assert {"teach"} | CHOSEN <= changed and not {"demos", "train/teacher"} & changed


REAL_TIME = {"real_time/teacher_4", "real_time/chamfer"}


def _real_time(**changes: Any) -> Config:
    return replace(BASE, real_time=replace(BASE.real_time, **{"latency_ms": (0.0, 100.0), "teacher_steps": (4,), **changes}))


def test_real_time_has_stages_only_when_it_is_asked_for_and_changes_no_other_but_the_report() -> None:
    before, after = _keys(BASE), _keys(_real_time())
    assert set(after) - set(before) == REAL_TIME
    assert {name for name in before if before[name] != after[name]} == {"report"}
    # while it is off nothing about it matters
    assert _changed("real_time.execution_horizon", 2) == _changed("real_time.teacher_steps", (1,)) == set()


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("real_time.latency_ms", (0.0,), REAL_TIME | {"report"}),
        ("real_time.time_scales", (2.0,), REAL_TIME | {"report"}),
        ("real_time.scale_to_clock", True, REAL_TIME | {"report"}),
        ("real_time.temporal_consistency", False, {"real_time/chamfer", "report"}),
        ("real_time.execution_horizon", 2, REAL_TIME | {"report"}),
        ("real_time.execution_horizon", 0, REAL_TIME | {"report"}),
        ("real_time.delays_per_query", 1.0, REAL_TIME | {"report"}),
        ("real_time.starts", 9, REAL_TIME | {"report"}),
        ("real_time.teacher_steps", (4, 1), {"real_time/teacher_1", "report"}),
        ("evaluate.execution_horizon", 9, TEACHER_ON | REAL_TIME),
        ("evaluate.selection", "single", SELECTED | {"real_time/chamfer"}),
        ("evaluate.latency_calls", 9, END),  # only stated times: measured ones do not matter
        ("student.default", "regression", {"real_time/chamfer", "real_time/regression", "frontier", "report"}),
    ],
)
def test_what_makes_the_rollouts_in_real_time_again(flag: str, value: Any, expected: set[str]) -> None:
    assert _changed(flag, value, _real_time()) == expected


def test_a_time_may_be_written_as_a_whole_number() -> None:
    assert _keys(_real_time(latency_ms=(0, 100))) == _keys(_real_time())


def test_measured_times_are_what_the_rollouts_are_made_from() -> None:
    assert _changed("evaluate.latency_calls", 9, _real_time(time_scales=(2.0,))) == END | REAL_TIME
    assert _changed("evaluate.latency_calls", 9, _real_time(latency_ms=(), scale_to_clock=True)) == END | REAL_TIME


def test_no_flag_of_a_stage_is_forgotten() -> None:
    """Every value that a stage is given changes a key: a flag added later may not be left out."""
    base = _with(BASE, "evaluate.selection", "temporal_consistency")  # the one that looks at all of its settings
    base = replace(base, real_time=_real_time().real_time)
    forgotten = []
    for section in ("demos", "teacher", "sample", "student", "evaluate", "real_time"):
        for item in fields(getattr(base, section)):
            old = getattr(getattr(base, section), item.name)
            values: dict[type, Any] = {bool: lambda v: not v, int: lambda v: 2 * v or 9, float: lambda v: v / 2 or 0.1}
            if type(old) in values and not _changed(f"{section}.{item.name}", values[type(old)](old), base):
                forgotten.append(f"{section}.{item.name}")
    # a divided batch changes rounding only; the last changes nothing where evaluate.selection is that already
    assert forgotten == ["teacher.accumulate", "student.accumulate", "real_time.temporal_consistency"]


# -- a teacher from elsewhere --------------------------------------------------------------------------------------


def _with_teacher(folder: Path, **changes: Any) -> Config:
    config = replace(BASE, teacher=replace(BASE.teacher, path=folder), **changes)
    return replace(config, evaluate=replace(config.evaluate, execution_horizon=8))


def test_a_teacher_from_elsewhere_is_not_trained_and_its_bytes_are_the_key(make_teacher, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("two", 1)):
        make_teacher(seed).save_pretrained(tmp_path / name)
    keys = {name: _keys(_with_teacher(tmp_path / name)) for name in ("one", "same", "two")}
    assert set(keys["one"]) == ALL - {"train/teacher", "teach"}
    assert keys["one"] == keys["same"]
    different = {stage for stage, key in keys["one"].items() if keys["two"][stage] != key}
    assert different == ALL - {"demos", "starts", "train/teacher", "teach"}
    # nothing of the recipe that would have trained it matters
    config = _with_teacher(tmp_path / "one")
    assert _keys(replace(config, teacher=replace(config.teacher, training_steps=3))) == keys["one"]


def test_a_teacher_that_fits_is_accepted(make_teacher, tmp_path: Path) -> None:
    make_teacher().save_pretrained(tmp_path)
    check_teacher_folder(_with_teacher(tmp_path))
    check_teacher_folder(BASE)


@pytest.mark.parametrize(
    ("made_for", "config", "message"),
    [
        ({"task": "detour"}, {}, "is for task 'detour', this run's task is 'avoid'; use --task detour or another"),
        ({}, {"task": "detour"}, "is for task 'avoid', this run's task is 'detour'; use --task avoid"),
        ({"state_names": ("tool_y_m", "tool_x_m")}, {}, "has the state .*another version of the task"),
        ({"action_names": ("x_m", "dy_m")}, {}, "has the action .*another version of the task"),
        (
            {"observation_steps": 1},
            {},
            "observes 1 steps, the config has 2; add --teacher.observation-steps 1",
        ),
        ({"horizon": 4}, {}, "execution_horizon is 8, .* plans 4 actions"),
        ({}, {"sample": replace(BASE.sample, solver="ddpm")}, r"sample\.solver: unknown 'ddpm'; expected one of \['euler'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(make_teacher, tmp_path: Path, made_for, config, message: str) -> None:
    make_teacher(**made_for).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_teacher_folder(_with_teacher(tmp_path, **config))


def test_a_diffusion_teacher_from_elsewhere_takes_steps_that_divide_its_levels(make_teacher, tmp_path: Path) -> None:
    teacher = DiffusionTeacher(make_teacher().shape)
    teacher.load_state_dict(make_teacher().state_dict())
    teacher.save_pretrained(tmp_path)
    check_teacher_folder(_with_teacher(tmp_path, sample=replace(BASE.sample, num_steps=20, solver="ddpm")))
    with pytest.raises(ValueError, match=r"sample\.num_steps: got 16, a diffusion teacher needs a divisor of 100"):
        check_teacher_folder(_with_teacher(tmp_path, sample=replace(BASE.sample, num_steps=16)))
    with pytest.raises(ValueError, match=r"sample\.solver: unknown 'heun'; expected one of \['ddim', 'ddpm'\]"):
        check_teacher_folder(_with_teacher(tmp_path, sample=replace(BASE.sample, solver="heun")))


def test_a_student_without_a_teacher_plans_as_far_as_the_teacher_it_is_compared_with(make_teacher, tmp_path: Path) -> None:
    make_teacher().save_pretrained(tmp_path)  # plans 8 actions, the config's own teacher would plan 16
    student = replace(BASE.student, objectives=("imle_policy", "chamfer"))
    config = _with_teacher(tmp_path, student=student)
    with pytest.raises(ValueError, match=r"imle_policy needs no teacher .* = 16 actions.* predicts 8; add --teacher.horizon 8"):
        check_teacher_folder(config)
    check_teacher_folder(_with(config, "teacher.horizon", 8))
    check_teacher_folder(_with_teacher(tmp_path))  # whoever learns from the teacher has its horizon


def test_a_broken_teacher_is_refused_by_its_file(make_teacher, tmp_path: Path) -> None:
    make_teacher().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{tmp_path / 'model.safetensors'} is not a whole"):
        check_teacher_folder(_with_teacher(tmp_path))
