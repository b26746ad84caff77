"""The command line: what is wrong is said in a line, at once, before anything is made; preset < file < flag."""

from __future__ import annotations

import importlib.machinery
import json
from pathlib import Path

import pytest

import distill
from distill.cli.command import COMMANDS, STAGES, flag_names, read_command, split_word
from distill.cli.launch import wanted_processes
from distill.config import StudentConfig
from distill.runtime.progress import in_words

ROOT = Path(__file__).parents[3]
DEFAULT = StudentConfig().default

FLAGS = [
    "task", "name", "runs_dir", "seed", "processes", "wandb", "note",
    "demos.train_starts", "demos.per_mode", "demos.episodes", "demos.noise_m",
    "observation.sources", "observation.state_names", "observation.cameras", "observation.image_size",
    "observation.num_points", "observation.colours", "observation.keypoints", "observation.frame", "observation.width",
    "observation.channels", "observation.shift_px", "observation.colour", "observation.point_jitter_m", "observation.dropout",
    "observation.translate_m", "observation.rotate_deg", "observation.stretch", "observation.displace_m",
    "observation.frozen",
    "teacher.kind", "teacher.path", "teacher.time_power", "teacher.solver",
    "teacher.observation_steps", "teacher.horizon", "teacher.width",
    "teacher.depth", "teacher.heads", "teacher.patch", "teacher.training_steps", "teacher.batch_size",
    "teacher.accumulate",
    "teacher.learning_rate", "teacher.weight_decay", "teacher.warmup_steps", "teacher.ema_decay",
    "teacher.candidates",
    "sample.num_hypotheses", "sample.num_steps", "sample.solver", "sample.num_observations", "sample.replanning_share",
    "sample.shard_size", "sample.batch_size", "sample.perturbation",
    "student.objectives", "student.default", "student.codes", "student.code_shares", "student.latent_size",
    "student.num_latents", "student.unexecuted_weight", "student.warm_start", "student.width", "student.depth",
    "student.training_steps", "student.batch_size", "student.accumulate", "student.learning_rate", "student.weight_decay",
    "student.warmup_steps", "student.ema_decay", "student.candidates",
    "evaluate.test_starts", "evaluate.validation_starts", "evaluate.teacher_steps", "evaluate.baselines",
    "evaluate.execution_horizon",
    "evaluate.selection", "evaluate.selection_candidates", "evaluate.forget_every",
    "evaluate.fidelity_observations", "evaluate.fidelity_samples", "evaluate.latency_calls",
    "evaluate.latency_warmup", "evaluate.latency_modes", "evaluate.frontier_samples",
    "real_time.latency_ms", "real_time.time_scales", "real_time.scale_to_clock",
    "real_time.teacher_steps", "real_time.execution_horizon",
    "real_time.delays_per_query", "real_time.starts", "real_time.temporal_consistency",
    "rlbench.program", "rlbench.python", "rlbench.workers", "rlbench.dataset", "rlbench.arm", "rlbench.collision_checking",
    "rlbench.per_action_collision_checking",
    "rlbench.keyframes", "rlbench.subsample", "rlbench.gripper_threshold", "rlbench.variations",
    "rlbench.objects", "rlbench.max_steps", "rlbench.retries", "rlbench.voxel_m", "rlbench.without_robot",
    "rlbench.crop_low", "rlbench.crop_high", "rlbench.renderer", "rlbench.start_s", "rlbench.step_s", "rlbench.restart_after",
    "world.gym", "world.make", "world.mapping", "world.python", "world.workers", "world.expert", "world.expert_noise",
    "world.demonstrations", "world.clips", "world.start_s", "world.step_s",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def _nothing_was_made() -> bool:
    return list(Path.cwd().iterdir()) == []


def test_the_flags_are_these() -> None:
    """Frozen: whoever adds, renames or drops a flag changes this list knowingly."""
    assert flag_names() == FLAGS


def test_the_package_wins_over_the_script_of_the_same_name() -> None:
    spec = importlib.machinery.PathFinder.find_spec("distill", [str(ROOT)])
    assert spec is not None and spec.origin == str(ROOT / "distill" / "__init__.py") == distill.__file__
    assert (ROOT / "distill.py").is_file()


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sampel", "unknown 'sampel'; expected one of [.*]. Did you mean 'sample'?"),
        ("trian --seed 1", "stage: unknown 'trian'"),
        ("--task aviod", "unknown task 'aviod', the tasks are [.*]; did you mean 'avoid'?"),
        ("--task avoid --sample.num-hypotheses 0", "sample.num_hypotheses: got 0, expected at least .*"),
        (
            "sample --sample.num-hypotheses 1",
            "sample.num_hypotheses: got 1, expected at least 2: a single hypothesis is not a set",
        ),
        ("--config nowhere.yaml", "no config at nowhere.yaml, and no preset of this name. Presets: .*"),
        ("--seed 1 --config", "--config: got nothing, expected a preset or a YAML file, such as avoid"),
        ("--config=", "--config: got nothing, expected a preset or a YAML file, such as avoid"),
        ("--teacher.kind diffusion --sample.num-steps 30", "sample.num_steps: got 30, a diffusion teacher needs a divisor"),
        ("--student.default regresion", "unknown 'regresion'.*Did you mean 'regression'?"),
        ("--teacher.solver heum", "teacher.solver: unknown 'heum'.*Did you mean 'heun'?"),
        ("--teacher.path nowhere", "no policy at nowhere: expected a folder with config.json and model.safetensors"),
        ("--seed -1", "seed: got -1, expected at least 0. Change --seed"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_nothing_is_made(main, capsys, line: str, message: str) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: ")
    parts = message.split(".*")
    assert all(part in told.err for part in parts), told.err
    assert _nothing_was_made()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sample.num-hypothesis 3", "--sample.num-hypotheses"),  # the nearest right name
        ("--colour red", "--colour"),
        ("--seed one", "--seed"),
        ("--wandb perhaps", "offline"),
        ("sample teach", "teach"),
    ],
)
def test_a_flag_that_is_unknown_or_of_the_wrong_type_ends_with_status_2(main, capsys, line: str, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err and _nothing_was_made()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampel: {num_steps: 3}", "unknown key 'sampel'. Did you mean 'sample'?"),
        ("sample: {num_step: 3}", "unknown key 'sample.num_step'. Did you mean 'num_steps'?"),
        ("sample: {num_steps: '3'}", "sample.num_steps is '3', expected a int"),
        ("sample: {num_hypotheses: 0}", "sample.num_hypotheses: got 0"),
    ],
)
def test_a_mistake_in_a_preset_names_the_file(main, capsys, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "mine.yaml")]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and _nothing_was_made()
    assert "mine.yaml" in told or "got 0" in told


def test_a_teacher_for_another_task_is_refused_before_any_work(main, capsys, make_teacher, tmp_path: Path) -> None:
    make_teacher(task="handles", horizon=32).save_pretrained(tmp_path / "teacher")
    assert main(["--teacher.path", str(tmp_path / "teacher")]) == 2
    told = capsys.readouterr().err
    assert "is for task 'handles', this run's task is 'avoid'; use --task handles" in told and told.count("\n") == 1
    assert _nothing_was_made()


def test_workers_say_a_mistake_once(main, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(["--task", "aviod"]) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("left", [
    {"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "y"}, {"LOCAL_RANK": "3"},
])  # fmt: skip
def test_variables_that_a_launcher_left_in_the_shell_are_told(main, capsys, monkeypatch: pytest.MonkeyPatch, left) -> None:
    """Without its address a process would wait for others that never come, or say nothing as it takes itself for a worker."""
    for name in ("MASTER_ADDR", "FLOW2ONE_MEETING", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert main(["--task", "avoid"]) == 2
    told = capsys.readouterr().err
    assert "unset RANK WORLD_SIZE" in told and told.count("\n") == 1
    assert _nothing_was_made()


# -- presets and flags ---------------------------------------------------------------------------------------------


def test_default_then_preset_then_later_preset_then_flag(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("seed: 11\nsample: {num_steps: 11, num_hypotheses: 11, shard_size: 11}")
    second.write_text("sample: {num_steps: 22, num_hypotheses: 22}")
    flags = ["--sample.num-steps", "33"]
    for line in (
        ["sample", "--config", str(first), "--config", str(second), *flags],
        ["sample", *flags, f"--config={first}", f"--config={second}"],  # wherever the flag stands
    ):
        stage, dry_run, config = read_command(line)
        assert (stage, dry_run) == ("sample", False)
        sample = config.sample
        assert (sample.num_steps, sample.num_hypotheses, sample.shard_size, config.seed) == (33, 22, 11, 11)
        assert sample.batch_size == type(config)().sample.batch_size


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("--config {configs}/detour.yaml --seed 3", "runs/detour-seed3"),
        ("--config {configs}/detour_points.yaml --seed 3", "runs/detour_points-seed3"),
        ("--config {configs}/detour.yaml --config {configs}/detour_rgbd.yaml", "runs/detour_rgbd-seed0"),
        ("--config {configs}/detour_points.yaml --name mine", "runs/mine"),
        ("--config {configs}/rlbench/close_door.yaml", "runs/rlbench-close_door-seed0"),
    ],
)
def test_a_run_with_cameras_is_named_by_its_preset_and_one_without_by_its_task(line: str, folder: str) -> None:
    _, _, config = read_command(line.format(configs=ROOT / "configs").split())
    assert str(config.folder) == folder


def test_lists_and_switches_as_flags() -> None:
    line = "--evaluate.teacher-steps 8 2 --student.objectives chamfer --student.default chamfer --student.no-warm-start"
    _, _, config = read_command(line.split())
    assert config.evaluate.teacher_steps == (8, 2) and config.student.objectives == ("chamfer",)
    assert config.student.warm_start is False


# -- dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_every_stage_and_makes_nothing(main, capsys) -> None:
    assert main(["--dry-run", "--seed", "5", "--student.objectives", "regression", DEFAULT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run runs/avoid-seed5 (task avoid, seed 5)"
    named = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:-1]}
    assert lines[-1] == "time not known: no earlier run with these settings"
    assert {"demos", "teach", "sample", "distill/regression", f"evaluate/{DEFAULT}", "evaluate/nearest_demonstration",
            "latency", "report"} <= set(named)  # fmt: skip
    assert set(named.values()) == {"to do"} and "distill/fidelity" not in named
    assert _nothing_was_made()


def test_a_dry_run_says_what_is_done_and_what_a_change_would_make_again(main, capsys, copied_run) -> None:
    config = ["--config", str(copied_run.config)]

    def plan(*more: str) -> dict[str, str]:
        assert main(["--dry-run", *config, *more]) == 0
        return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  "))

    before = {path: path.stat().st_mtime_ns for path in copied_run.run.rglob("*")}
    assert set(plan().values()) == {"done"}
    changed = plan("--student.training-steps", "11")
    again = {name for name, state in changed.items() if state.startswith("to do (settings changed")}
    students = ("regression", DEFAULT)
    assert again == {f"{part}/{name}" for part in ("train", "distill", "evaluate") for name in students} | {
        "generalisation",
        "latency",
        "frontier",
        "report",
    }
    assert {state for name, state in changed.items() if name not in again} == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in copied_run.run.rglob("*")}
    manifest = json.loads((copied_run.run / "sample" / "manifest.json").read_text())
    (copied_run.run / "sample").rename(copied_run.run / f"sample.{manifest['key'][:8]}")
    assert plan()["sample"] == "done (archived, will be restored)"


def test_a_dry_run_of_a_stage_shows_that_stage_and_what_it_needs(main, capsys) -> None:
    assert main(["--config", "avoid", "sample", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["demos", "train/teacher", "starts", "teach", "sample"]


def test_a_dry_run_says_how_long_it_took_before(main, capsys, copied_run) -> None:
    """With another seed everything is to do, and is known to take as long as with the first."""
    seconds = {path.parent.name: json.loads(path.read_text())["seconds"] for path in copied_run.run.glob("*/manifest.json")}
    assert main(["--dry-run", "--config", str(copied_run.config), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    told = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert told["sample"] == f"to do, about {in_words(seconds['sample'])}"
    assert out.splitlines()[-1].startswith("time in earlier runs with these settings: about ")
    # with other settings it is not known, and neither is the time of what follows
    assert main(["--dry-run", "--config", str(copied_run.config), "--sample.num-hypotheses", "5"]) == 0
    out = capsys.readouterr().out
    told = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert told["sample"].endswith("archived)") and out.splitlines()[-1].split(": ")[1].startswith("at least ")


# -- the order of words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word", "rest"),
    [
        ("demos --seed 1", "demos", "--seed 1"),
        ("--config avoid demos", "demos", "--config avoid"),
        ("--config=avoid demos --dry-run", "demos", "--config=avoid --dry-run"),
        ("--dry-run report", "report", "--dry-run"),
        ("--evaluate.teacher-steps 8 2 report", "report", "--evaluate.teacher-steps 8 2"),
        ("--student.no-warm-start distill", "distill", "--student.no-warm-start"),
        ("--name sample --seed 1", "", "--name sample --seed 1"),
        ("--name sample sample", "sample", "--name sample"),
        ("--out there compare a b", "compare", "--out there a b"),
        ("", "", ""),
    ],
)
def test_the_stage_may_stand_anywhere_but_as_the_value_of_an_option(line: str, word: str, rest: str) -> None:
    assert split_word(line.split(), (*STAGES, *COMMANDS)) == (word, rest.split())


def test_flags_may_come_before_the_command_of_an_existing_policy(main, capsys) -> None:
    assert main(["--observations", "nowhere", "--out", "out", "compare", "a", "b"]) == 2
    assert "--observations: nowhere does not exist" in capsys.readouterr().err


# -- processes -----------------------------------------------------------------------------------------------------


def test_how_many_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert wanted_processes(0) == 3 and wanted_processes(5) == 5
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert wanted_processes(0) == 8
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert wanted_processes(0) == 1 and wanted_processes(2) == 2
