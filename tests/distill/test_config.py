"""Presets, flags and everything that can be known to be wrong before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.checks import validate
from distill.config import Config
from distill.objectives.recipes import RECIPES
from distill.presets import apply_preset

ROOT = Path(__file__).parents[2]


def _preset(folder: Path, text: str, config: Config | None = None) -> Config:
    path = folder / "preset.yaml"
    path.write_text(text)
    return apply_preset(config or Config(), path)


# -- presets -------------------------------------------------------------------------------------------------------


def test_a_preset_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = _preset(tmp_path, "task: detour\nteacher: {width: 64, learning_rate: 1}\nruns_dir: elsewhere\n")
    default = Config()
    assert config == replace(
        default,
        task="detour",
        runs_dir=Path("elsewhere"),
        teacher=replace(default.teacher, width=64, learning_rate=1.0),
    )
    assert type(config.teacher.learning_rate) is float and config.folder == Path("elsewhere/detour-seed0")


def test_lists_become_tuples_and_a_path_a_path(tmp_path: Path) -> None:
    config = _preset(
        tmp_path, "student: {objectives: [chamfer]}\nteacher: {path: some/where}\nevaluate: {teacher_steps: [9]}"
    )
    assert config.student.objectives == ("chamfer",) and config.evaluate.teacher_steps == (9,)
    assert config.teacher.path == Path("some/where")


def test_later_presets_win_and_an_empty_one_changes_nothing(tmp_path: Path) -> None:
    first = _preset(tmp_path, "seed: 3\nsample: {num_steps: 7, shard_size: 9}")
    second = _preset(tmp_path, "sample: {num_steps: 8}", first)
    assert (second.seed, second.sample.num_steps, second.sample.shard_size) == (3, 8, 9)
    assert _preset(tmp_path, "# nothing\n", second) == second


def test_a_preset_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("seed: 3\nteacher: {width: 64, depth: 2}\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\nteacher: {width: 32}\n")
    made = apply_preset(Config(), tmp_path / "above.yaml")
    assert (made.seed, made.teacher.width, made.teacher.depth) == (3, 32, 2)
    (tmp_path / "beside.yaml").write_text("teacher: {depth: 3, heads: 2}\n")
    (tmp_path / "both.yaml").write_text("extends: [above.yaml, beside.yaml]\nseed: 4\n")
    made = apply_preset(Config(), tmp_path / "both.yaml")  # the later one wins, the file itself over both
    assert (made.seed, made.teacher.width, made.teacher.depth, made.teacher.heads) == (4, 32, 3, 2)
    (tmp_path / "below.yaml").write_text("extends: above.yaml\n")
    with pytest.raises(ValueError, match="extends .*above.yaml, which extends it in turn"):
        apply_preset(Config(), tmp_path / "above.yaml")
    (tmp_path / "above.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(ValueError, match="no config at .*nowhere.yaml"):
        apply_preset(Config(), tmp_path / "above.yaml")


PRESETS = [path for path in sorted((ROOT / "configs").glob("**/*.yaml"))
           if not path.read_text().startswith("# Part of presets:") and not apply_preset(Config(), path).world.gym]  # fmt: skip
"""Those of other simulators are opened in the interpreters that have them (tests/worlds)."""


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_that_we_ship_is_valid(preset: Path) -> None:
    validate(apply_preset(Config(), preset))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taks: avoid", "unknown key 'taks'. Did you mean 'task'"),
        ("sample: {num_hypothesis: 3}", r"unknown key 'sample\.num_hypothesis'. Did you mean 'num_hypotheses'"),
        ("3: 4", "unknown key '3'"),
        ("teacher: 3", "teacher is a section, expected `key: value` lines below it, got 3"),
        ("- task", "got a list, expected `key: value` lines"),
        ("just words", "got a str, expected `key: value` lines"),
        ("task: [", "not readable YAML"),
        ("task: !!python/object/apply:os.getcwd []", "not readable YAML"),
        ("seed: '1'", "seed is '1', expected a int like 0"),
        ("seed: 1.0", "seed is 1.0, expected a int"),
        ("seed: true", "seed is True, expected a int"),
        ("teacher: {learning_rate: fast}", r"teacher\.learning_rate is 'fast', expected a float"),
        ("student: {warm_start: 1}", r"student\.warm_start is 1, expected a bool"),
        ("student: {objectives: chamfer}", r"student\.objectives is 'chamfer', expected a tuple"),
        ("runs_dir: 4", "runs_dir is 4, expected a"),
        ("wandb: off", "wandb is False, expected a str"),
        ("teacher: {path: 3}", r"teacher\.path"),
        ("seed:", "seed"),
        ("sample: {num_hypotheses: null}", r"sample\.num_hypotheses"),
        ("student: {objectives: [1]}", r"student\.objectives"),
        ("evaluate: {teacher_steps: [fast]}", r"evaluate\.teacher_steps"),
        ("evaluate: {teacher_steps: [2.5]}", r"evaluate\.teacher_steps"),
        ("wandb: nonsense", "wandb.*nonsense"),
    ],
)
def test_a_wrong_preset_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        validate(_preset(tmp_path, text))


def test_a_missing_preset_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "avoid.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no config at configs/avid.yaml, and no preset of this name. Did you mean 'avoid'"):
        apply_preset(Config(), Path("configs/avid.yaml"))


# -- validation ----------------------------------------------------------------------------------------------------


def _with(section: str, **changes: Any) -> Config:
    config = Config()
    if not section:
        return replace(config, **changes)
    return replace(config, **{section: replace(getattr(config, section), **changes)})


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("", {"task": "aviod"}, "unknown task 'aviod'.*did you mean 'avoid'"),
        ("", {"seed": -1}, "seed: got -1, expected at least 0. Change --seed"),
        ("", {"processes": -2}, "processes: got -2"),
        ("demos", {"train_starts": 0}, r"demos\.train_starts: got 0, expected at least 1. Change --demos.train-starts"),
        (
            "demos",
            {"episodes": 961},
            r"demos\.episodes: got 961, but train_starts x modes x per_mode is only 960; raise demos",
        ),
        ("demos", {"episodes": 49, "train_starts": 1, "per_mode": 2}, r"demos\.episodes: got 49.* only 48"),
        ("demos", {"episodes": -1}, r"demos\.episodes: got -1, expected at least 0"),
        ("demos", {"noise_m": -0.1}, r"demos\.noise_m: got -0.1"),
        ("demos", {"noise_m": float("nan")}, r"demos\.noise_m: got nan"),
        ("sample", {"num_hypotheses": 0}, r"sample\.num_hypotheses: got 0, expected at least .*num.hypotheses"),
        (
            "sample",
            {"num_hypotheses": 1},
            r"sample\.num_hypotheses: got 1, expected at least 2: a single hypothesis is not a set",
        ),
        ("sample", {"num_steps": -1}, r"sample\.num_steps: got -1, expected at least 0"),
        ("sample", {"solver": "euler"}, r"sample\.num_steps: got 0 with sample\.solver 'euler', expected the number"),
        ("sample", {"shard_size": 0}, r"sample\.shard_size: got 0"),
        ("teacher", {"solver": "heum"}, r"teacher\.solver: unknown 'heum'.*Did you mean 'heun'"),
        ("teacher", {"kind": "difusion"}, r"teacher\.kind: unknown 'difusion'.*Did you mean 'diffusion'"),
        ("teacher", {"kind": "diffusion", "solver": "heun"}, r"teacher\.solver: unknown 'heun'.*\['ddim', 'ddpm'\]"),
        ("teacher", {"time_power": 0.0}, r"teacher\.time_power: got 0.0, expected 1 \(uniform\), or more than 0"),
        ("teacher", {"time_power": -1.0}, r"teacher\.time_power: got -1.0"),
        ("teacher", {"time_power": float("nan")}, r"teacher\.time_power: got nan"),
        ("teacher", {"time_power": 2.0, "kind": "diffusion"}, r"time_power: got 2.0, .* with teacher.kind 'flow'"),
        ("teacher", {"width": 0}, r"teacher\.width: got 0, expected at least 1"),
        ("teacher", {"depth": 0}, r"teacher\.depth: got 0, expected at least 1"),
        ("teacher", {"horizon": 30}, "horizon 30 is not a multiple of patch"),
        ("teacher", {"width": 130}, "width must be even and a multiple of heads"),
        ("teacher", {"learning_rate": -1.0}, r"teacher\.learning_rate: got -1.0"),
        ("teacher", {"learning_rate": float("inf")}, r"teacher\.learning_rate"),
        ("teacher", {"ema_decay": 1.5}, r"teacher\.ema_decay"),
        ("student", {"ema_decay": 1.0}, r"student\.ema_decay"),
        ("student", {"objectives": ("chamfr",), "default": "chamfr"}, "unknown 'chamfr'.*Did you mean 'chamfer'"),
        ("student", {"objectives": ("chamfer", "shortcutt")}, "unknown 'shortcutt'.*Did you mean 'shortcut'"),
        ("student", {"objectives": ("imle_polcy",)}, "unknown 'imle_polcy'.*Did you mean 'imle_policy'"),
        ("student", {"objectives": ("chamfer+2energy_distnce",)}, "'energy_distnce'.*Did you mean 'energy_distance'"),
        ("student", {"objectives": ("chamfer@2",)}, "'chamfer' has nothing to set by '@2'"),
        ("student", {"width": 62}, r"student\.width, student\.depth: width must be even and a multiple of heads.*width=62"),
        ("student", {"width": -2}, r"student\.width: got -2, expected at least 0"),
        ("student", {"default": "regresion"}, "unknown 'regresion'.*Did you mean 'regression'"),
        ("student", {"objectives": ("regression",), "default": "chamfer"}, "'chamfer' is not among student.objectives"),
        ("student", {"objectives": ("chamfer", "chamfer"), "default": "chamfer"}, "got a name twice"),
        ("student", {"num_latents": 1}, r"student\.num_latents: got 1, expected at least 2"),
        ("student", {"num_latents": 0}, r"student\.num_latents: got 0"),
        ("sample", {"solver": "heum"}, r"sample\.solver: unknown 'heum'.*Did you mean 'heun'"),
        ("student", {"latent_size": 0}, r"student\.latent_size: got 0"),
        ("student", {"codes": 1}, r"student\.codes: got 1, expected at least 2, or 0 for none"),
        ("student", {"codes": -1}, r"student\.codes: got -1, expected at least 0"),
        ("evaluate", {"teacher_steps": ()}, r"evaluate\.teacher_steps: got \[\]"),
        ("evaluate", {"teacher_steps": (4, 0)}, r"evaluate\.teacher_steps: got \[4, 0\]"),
        ("evaluate", {"teacher_steps": (4, 4)}, r"evaluate\.teacher_steps: got \[4, 4\]"),
        ("evaluate", {"execution_horizon": 33}, r"execution_horizon.*33"),
        ("real_time", {"latency_ms": (-1.0,)}, r"real_time\.latency_ms: got \[-1.0\], expected different numbers, each 0 or"),
        ("real_time", {"latency_ms": (5.0, 5.0)}, r"real_time\.latency_ms: got \[5.0, 5.0\].*Change --real-time.latency-ms"),
        ("real_time", {"latency_ms": ("fast",)}, r"real_time\.latency_ms: got \['fast'\]"),
        ("real_time", {"latency_ms": (float("nan"),)}, r"real_time\.latency_ms: got \[nan\]"),
        ("real_time", {"time_scales": (0.0,)}, r"real_time\.time_scales: got \[0.0\], expected .* more than 0. Change --real"),
        ("real_time", {"time_scales": (1.0,), "teacher_steps": (50, 7)}, r"real_time\.teacher_steps: got \[50, 7\].*evaluate"),
        ("real_time", {"time_scales": (1.0,), "teacher_steps": ()}, r"real_time\.teacher_steps: got \[\]"),
        ("real_time", {"latency_ms": (0.0,), "execution_horizon": 17}, r"real_time\.execution_horizon: got 17, .*only 16"),
        ("real_time", {"latency_ms": (0.0,), "starts": 481}, r"real_time\.starts: got 481, there are only 480 test starts"),
        ("real_time", {"latency_ms": (0.0,), "delays_per_query": 0.5}, r"real_time\.delays_per_query: got 0.5"),
        ("real_time", {"starts": -1}, r"real_time\.starts: got -1, expected at least 0"),
        ("evaluate", {"execution_horizon": 0}, r"evaluate\.execution_horizon: got 0"),
        ("evaluate", {"selection": "temporal_consistancy"}, r"selection: unknown .*mean 'temporal_consistency'"),
        ("evaluate", {"baselines": ("nearest_demo",)}, r"evaluate\.baselines: unknown 'nearest_demo'"),
        ("evaluate", {"selection_candidates": 0}, r"evaluate\.selection_candidates: got 0"),
        ("evaluate", {"forget_every": -1}, r"evaluate\.forget_every: got -1, expected at least 0"),
        ("evaluate", {"fidelity_samples": 5}, r"evaluate\.fidelity_samples"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(section: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(_with(section, **changes))


def test_what_can_work_is_let_through() -> None:
    validate(Config())
    validate(_with("student", objectives=("regression",), default="regression", num_latents=1))
    validate(_with("", task="handles", seed=0, processes=0))
    validate(_with("teacher", warmup_steps=0, weight_decay=0.0))
    validate(_with("evaluate", latency_warmup=0, teacher_steps=(1,)))
    validate(_with("evaluate", baselines=()))
    validate(_with("evaluate", selection="temporal_consistency", forget_every=0))
    validate(_with("demos", episodes=960))
    validate(_with("teacher", time_power=2.0, solver="heun"))
    validate(_with("teacher", kind="diffusion", solver="ddpm"))
    validate(_with("student", width=64, depth=2))
    validate(_with("student", codes=0, latent_size=8))
    validate(_with("student", codes=2, latent_size=1))
    validate(_with("student", objectives=tuple(RECIPES), default="reflow"))
    validate(_with("student", objectives=("chamfer+0.5energy_distance", "rs_imle@0.1"), default="rs_imle@0.1"))


def test_a_diffusion_teachers_steps_divide_its_levels() -> None:
    def config(num_steps: int, *teacher_steps: int, kind: str = "diffusion") -> Config:
        chosen = replace(_with("teacher", kind=kind), sample=replace(Config().sample, num_steps=num_steps))
        return replace(chosen, evaluate=replace(chosen.evaluate, teacher_steps=teacher_steps))

    validate(config(20, 100, 50, 1))
    for wrong, message in (
        (config(16, 50), r"sample\.num_steps: got 16, a diffusion teacher needs a divisor of 100: one of \[1, 2, 4, 5, 10,"),
        (config(20, 50, 8), r"evaluate\.teacher_steps: got 8, a diffusion teacher needs a divisor of 100"),
        (config(20, 101), r"evaluate\.teacher_steps: got 101"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(wrong)
    validate(config(16, 50, 8, kind="flow"))
    # one from elsewhere is looked at where it is opened
    elsewhere = config(16, 50, 8)
    validate(replace(elsewhere, teacher=replace(elsewhere.teacher, path=Path("elsewhere"))))


def test_a_student_without_a_teacher_is_trained_as_long_as_one() -> None:
    config = replace(_with("teacher", training_steps=70), student=replace(Config().student, training_steps=30))
    assert RECIPES["imle_policy"].settings(config) == replace(config.student, training_steps=70)
    assert RECIPES["chamfer"].settings(config) == config.student
    for name in ("reflow", "consistency", "shortcut", "mean_flow"):  # each at a learning rate of its own, with all blocks
        settings = RECIPES[name].settings(config)
        assert replace(settings, learning_rate=config.student.learning_rate, depth=config.student.depth) == config.student


def test_a_run_is_named_after_task_and_seed_unless_it_has_a_name() -> None:
    assert Config(task="handles", seed=4).folder == Path("runs/handles-seed4")
    assert Config(name="mine", runs_dir=Path("/data")).folder == Path("/data/mine")


def test_in_real_time_who_draws_several_plans_stays_with_the_last_one() -> None:
    config = Config()
    elsewhere = config.evaluate.student_selection
    assert elsewhere.kind == "outlier_rejection"
    # among as many samples, so a call takes as long
    assert config.real_time_selection == replace(elsewhere, kind="temporal_consistency")
    assert replace(config, real_time=replace(config.real_time, temporal_consistency=False)).real_time_selection == elsewhere
    for kind in ("single", "kept_latent"):
        alone = replace(config, evaluate=replace(config.evaluate, selection=kind))
        assert alone.real_time_selection == alone.evaluate.student_selection
