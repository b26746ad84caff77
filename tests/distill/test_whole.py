"""The whole recipe, tiny: reused, redone in part, refused when damaged, killed and gone on with, in two processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distill.config import EvaluateConfig, StudentConfig
from distill.hypotheses.cache import HypothesisDataset
from distill.objectives.recipes import recipe
from distill.store.manifest import verify
from envs import make, task_spec
from envs.demonstrations import Demonstrations, windows
from envs.specs import STATE
from students import load_student
from students.flow_map import FlowMapStudent

DEFAULT = StudentConfig().default
STUDENTS = ("regression", DEFAULT)
OF_STUDENTS = {f"{part}/{name}" for part in ("train", "distill", "evaluate") for name in STUDENTS}
OTHERS = {
    "demos",
    "starts",
    "train/teacher",
    "teach",
    "sample",
    "reference",
    "evaluate/teacher_4",
    "evaluate/teacher_1",
    "evaluate/nearest_demonstration",
}
END = {"generalisation", "latency", "frontier", "report"}
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


def _manifests(run: Path) -> dict[str, tuple[str, int]]:
    """Key and time of the manifest of every stage that stands in its place (not aside, not partial)."""
    found = {}
    for path in run.rglob("manifest.json"):
        name = str(path.parent.relative_to(run))
        if not re.search(r"\.[0-9a-f]{8}", name):
            found[name] = (json.loads(path.read_text())["key"], path.stat().st_mtime_ns)
    return found


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _report(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())
    return report


# -- one run -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_report_of_what_it_measured(tiny_run) -> None:
    stages = _manifests(tiny_run.run)
    assert set(stages) == OTHERS | OF_STUDENTS | END
    for name in stages:
        verify(tiny_run.run / name)
    assert not list(tiny_run.run.glob("**/*.partial"))
    report = _report(tiny_run.run)
    assert report["made"]["processes"] == 1 and report["made"]["seed"] == 0 and report["task"]["name"] == "avoid"
    assert report["data"]["episodes"] == 2 * 24
    assert (report["data"]["observations"], report["data"]["hypotheses_per_observation"]) == (40, 4)
    # four hypotheses are too few to tell two ways apart
    assert report["data"]["observations_by_modes"] == [40] and 0 <= report["data"]["repeated_share"] <= 0.75
    policies = {row["name"]: row for row in report["policies"]}
    assert list(policies) == ["teacher_4", "teacher_1", "nearest_demonstration", *STUDENTS]
    assert {name: row["nfe"] for name, row in policies.items()} == {
        "teacher_4": 4, "teacher_1": 1, "nearest_demonstration": 0, "regression": 1, DEFAULT: 1
    }  # fmt: skip
    # only among a student's samples is one chosen
    chosen_from = EvaluateConfig().selection_candidates
    assert [row["candidates"] for row in policies.values()] == [1, 1, 1, chosen_from, chosen_from]
    for name, row in policies.items():
        assert row["episodes"] == 6 == len(row["episode_success"]) and row["successes"] == sum(row["episode_success"])
        assert sum(row["failures"].values()) == 6 - row["successes"]
        result = json.loads((tiny_run.run / "evaluate" / name / "result.json").read_text())
        assert [episode["index"] for episode in result["episodes"]] == list(range(6))
        assert result["fidelity"]["observations"] == 5 and result["fidelity"]["samples"] == 8
        assert row["latency"]["calls"] == 20
    for name in (*STUDENTS, "teacher_1"):
        assert policies[name]["kind"] == ("student" if name in STUDENTS else "teacher")
    assert f"report: {(tiny_run.run / 'report' / 'report.html').resolve()}" in tiny_run.output
    html = (tiny_run.run / "report" / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html>") and recipe(DEFAULT).label in html
    assert (tiny_run.run / "report" / "report.md").stat().st_size > 500


def test_the_report_holds_the_sets_that_were_evaluated_and_says_how_it_was_made(tiny_run) -> None:
    report = _report(tiny_run.run)
    explored, made = report["explored"], report["made"]
    assert explored["actions"] == ["x_m", "y_m"] and explored["state_names"] == list(task_spec("avoid").state_names)
    assert list(explored["sets"]) == ["teacher_4", DEFAULT] and len(explored["observations"]) == 5
    assert {len(chunks) for sets in explored["sets"].values() for chunks in sets} == {8}
    # the first observation is the one whose sets `evaluate` stored; drawn again, they are the same
    evaluated = json.loads((tiny_run.run / "evaluate" / DEFAULT / "result.json").read_text())
    assert explored["observations"][0]["row"] == evaluated["planned_at"]
    np.testing.assert_allclose(explored["sets"][DEFAULT][0], evaluated["planned_set"], atol=2e-4)
    reference = load_file(str(tiny_run.run / "reference" / "reference.safetensors"))["reference"]
    row = explored["observations"][3]["row"]
    np.testing.assert_allclose(explored["sets"]["teacher_4"][3], reference[row], atol=2e-4)
    assert made["commands"] == [f"flow2one --config {tiny_run.config}"] and made["version"].startswith("0.")
    assert made["config"]["teacher"]["training_steps"] == 20 and made["config"]["evaluate"]["teacher_steps"] == [4, 1]
    assert made["timing"]["cores"] >= 1 and 0 < made["timing"]["own_share"] <= 1.1 and made["timing"]["seconds"] > 0
    assert re.search(r"^\[1/\d+\] demos$", tiny_run.output, re.MULTILINE) and "speed-up" in tiny_run.output


def test_clips_last_as_long_as_the_slowest_policy_and_show_its_latency(tiny_run) -> None:
    report = _report(tiny_run.run)
    latency = {policy["name"]: policy["latency"]["median_ms"] for policy in report["policies"]}
    lasts = {}
    for name, path in report["clips"].items():
        with Image.open(tiny_run.run / "report" / path) as clip:
            shown = []
            for number in range(clip.n_frames):
                clip.seek(number)
                clip.load()
                shown.append(clip.info["duration"])
        lasts[name] = sum(shown)
        assert abs(shown[0] - (50 + latency[name])) <= 1  # 50 ms a step, and the first call
    assert list(lasts) == ["teacher_4", "regression", DEFAULT]
    assert max(lasts.values()) - min(lasts.values()) <= 100  # frames last whole milliseconds


def test_the_shares_of_the_chosen_student_are_set_right(tiny_run) -> None:
    chosen, name = tiny_run.run / "distill" / DEFAULT, "calibration.json"
    figures = json.loads((chosen / name).read_text())
    assert figures["cpu_seconds"] > 0 and figures["energy_after"] < figures["energy_before"]
    step = next(row["step"] for row in json.loads((chosen / "validation.json").read_text()) if row["chosen"])
    trained = load_student(tiny_run.run / "train" / DEFAULT / f"candidate-{step:06d}").state_dict()
    changed = {key for key, value in load_student(chosen).state_dict().items() if not value.equal(trained[key])}
    assert changed and all(key.startswith("share_correction.") for key in changed)
    # one that learns none is left as it is, and what the other cost is counted
    assert not (tiny_run.run / "distill" / "regression" / name).exists()
    manifest = json.loads((tiny_run.run / "train" / DEFAULT / "manifest.json").read_text())
    cost = _report(tiny_run.run)["distilling"]["students"][DEFAULT]
    assert cost == pytest.approx(manifest["cpu_seconds"] + figures["cpu_seconds"])


def test_the_nearest_demonstration_is_evaluated_like_a_policy(tiny_run) -> None:
    """It does what was done after the most similar frame: found again here by hand, and its rollout replayed."""
    name = "nearest_demonstration"
    row = next(row for row in _report(tiny_run.run)["policies"] if row["name"] == name)
    assert (row["kind"], row["label"], row["objective"]) == ("baseline", "Nearest demonstration", None)
    assert not row["is_default_student"] and not row["is_reference_teacher"] and row["validation"] is None
    assert row["difference"] is not None and row["speedup"] > 0 and row["fidelity"]["observations"] == 5
    result = json.loads((tiny_run.run / "evaluate" / name / "result.json").read_text())
    assert result["observation_modes"]["observations"] == 5
    demonstrations = Demonstrations.load(tiny_run.run / "demos", task_spec("avoid"))
    assert result["parameters"] == len(demonstrations.state) * (2 * 2 + 16 * 2)  # histories of 2, chunks of 16
    states, chunks = windows(demonstrations, np.arange(len(demonstrations.state)), 2, 16)
    half = np.ptp(demonstrations.state, axis=0) / 2
    stored = load_file(str(tiny_run.run / "starts" / "starts.safetensors"))
    # the set of 8 planned for the held-out observation at which the teacher's differ most: one and the same chunk
    teachers = load_file(str(tiny_run.run / "reference" / "reference.safetensors"))["reference"].numpy()
    assert result["planned_at"] == np.argmax([np.square(chunks_STA[..., :2].std(0)).mean() for chunks_STA in teachers])
    distance = np.square((stored["observations"][result["planned_at"]].numpy() - states) / half).sum((1, 2))
    planned = np.array(result["planned_set"])
    np.testing.assert_allclose(planned, np.repeat(chunks[distance.argmin()][None], 8, 0), atol=1e-4)
    # an episode's first eight actions are the first half of the chunk of the demonstration nearest to its start
    observation, _ = make("avoid").reset(options={"start": stored["test"][0].numpy()})
    distance = np.square((observation[STATE] - states) / half).sum((1, 2))
    np.testing.assert_allclose(result["episodes"][0]["actions"][:8], chunks[distance.argmin()][:8], atol=1e-5)


def test_real_time_is_measured_and_reported_where_it_is_asked_for(copied_run, main) -> None:
    before = _manifests(copied_run.run)
    arguments = ["--config", str(copied_run.config), "--real-time.latency-ms", "0", "120", "--real-time.time-scales", "1.5",
                 "--real-time.scale-to-clock", "--real-time.teacher-steps", "4", "--real-time.starts", "3"]  # fmt: skip
    assert main(arguments) == 0
    after = _manifests(copied_run.run)
    assert _changed(before, after) == {"real_time/teacher_4", f"real_time/{DEFAULT}", "report"}
    measured = json.loads((copied_run.run / "latency" / "latency.json").read_text())
    for name in ("teacher_4", DEFAULT):
        result = json.loads((copied_run.run / "real_time" / name / "result.json").read_text())
        own = 1.5 * measured[name]["median_ms"]
        fits = 50 / measured[DEFAULT]["median_ms"]  # the student's call is one step of 50 ms
        times = result["times"]
        scaled = [(1.5, own), (fits, fits * measured[name]["median_ms"])]
        assert [(each["scale"], each["latency_ms"]) for each in times] == [(None, 0), (None, 120), *scaled]
        late = 1 if name == DEFAULT else -(-scaled[1][1] // 50)
        assert [each["delay_steps"] for each in times] == [0, 3, -(-own // 50), late]
        for given in times:
            assert given["period_steps"] == max(4, 2 * given["delay_steps"])
            assert [each["index"] for each in given["calm"]] == [each["index"] for each in given["disturbed"]] == [0, 1, 2]
            assert all(each["disturbed_at"] is None for each in given["calm"])
    told = _report(copied_run.run)["real_time"]
    assert [(row["policy"], row["scale"]) for row in told["rows"]] == [
        (name, scale) for scale in (None, None, 1.5, fits) for name in ("teacher_4", DEFAULT)
    ]
    html, text = ((copied_run.run / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert 'alt="success over the time of a policy call"' in html and told["disturbance"] in html
    assert "| measured × 1.50" in text
    # with the old command the old report comes back, and says that nothing was asked for
    assert main(["--config", str(copied_run.config)]) == 0
    assert "--real-time.latency-ms" in (copied_run.run / "report" / "report.md").read_text()


def test_how_foreign_the_observations_were_is_counted_for_every_policy(tiny_run) -> None:
    for row in _report(tiny_run.run)["policies"]:
        result = json.loads((tiny_run.run / "evaluate" / row["name"] / "result.json").read_text())
        for episode in result["episodes"]:
            assert episode["queries"] == max(1, -(-episode["steps"] // 8))
            assert 0 <= episode["out_of_distribution"] <= episode["queries"]
        outside, asked = (sum(episode[key] for episode in result["episodes"]) for key in ("out_of_distribution", "queries"))
        assert row["out_of_distribution_share"] == result["summary"]["out_of_distribution_share"] == outside / asked


def test_without_a_baseline_there_is_none_in_the_report(copied_run, main, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["distill.py"])  # the report names the command, and pytest's may name this test

    def pages() -> list[str]:
        """Both reports without pictures, style and the list of settings, which names this one."""
        texts = [(copied_run.run / "report" / name).read_text() for name in ("report.html", "report.md")]
        left_out = r"base64,[A-Za-z0-9+/=]+|<style>.*?</style>|evaluate\.baselines: [^\n]*"
        return [re.sub(left_out, "", text, flags=re.S).lower() for text in texts]

    assert all("baseline" in page and "nearest demonstration" in page for page in pages())
    before = _manifests(copied_run.run)
    config = copied_run.folder / "none.yaml"
    config.write_text("evaluate: {baselines: []}")
    assert main(["--config", str(copied_run.config), "--config", str(config)]) == 0
    assert _changed(before, _manifests(copied_run.run)) <= END  # the baseline's own stage stands as it did, unused
    assert "nearest_demonstration" not in {row["name"] for row in _report(copied_run.run)["policies"]}
    assert not any("baseline" in page or "nearest demonstration" in page for page in pages())


def test_the_starts_of_all_policies_are_the_same_and_of_no_other_split(tiny_run) -> None:
    stored = load_file(str(tiny_run.run / "starts" / "starts.safetensors"))
    assert stored["test"].shape == (6, 2) and stored["validation"].shape == (4, 2)
    frames = load_file(str(tiny_run.run / "demos" / "frames.safetensors"))
    rows = [
        tuple(row) for part in (stored["test"], stored["validation"], frames["episode_start"]) for row in part.tolist()
    ]
    assert len(set(rows)) == 6 + 4 + 2
    for name in ("teacher_4", "teacher_1", "nearest_demonstration", *STUDENTS):
        result = json.loads((tiny_run.run / "evaluate" / name / "result.json").read_text())
        for episode, start in zip(result["episodes"], stored["test"].tolist(), strict=True):
            assert episode["path"][0] == pytest.approx(start, abs=1e-3)


def test_the_checkpoint_is_chosen_on_validation_starts(tiny_run) -> None:
    for name in ("teach", *(f"distill/{student}" for student in STUDENTS)):
        rows = json.loads((tiny_run.run / name / "validation.json").read_text())
        assert len(rows) == 2 and sum(row["chosen"] for row in rows) == 1
        best = max(row["success_rate"] + (row["entropy"] or 0.0) for row in rows)
        chosen = next(row for row in rows if row["chosen"])
        assert chosen["success_rate"] + (chosen["entropy"] or 0.0) == best
        trained = tiny_run.run / name.replace("distill", "train").replace("teach", "train/teacher")
        candidate, taken = trained / f"candidate-{chosen['step']:06d}" / "model.safetensors", tiny_run.run / name
        if (taken / "calibration.json").exists():  # all of it, but for the shares that were set right since
            weights, learned = load_file(str(taken / "model.safetensors")), load_file(str(candidate))
            assert set(weights) == set(learned) and name == f"distill/{DEFAULT}"
            assert all(value.equal(learned[key]) for key, value in weights.items() if not key.startswith("share_correction."))
        else:
            assert (taken / "model.safetensors").read_bytes() == candidate.read_bytes()


def test_the_cache_is_drawn_by_the_chosen_teacher(tiny_run) -> None:
    from distill.hypotheses.cache import HypothesisDataset, hypothesis_seeds, noise_of
    from envs.specs import STATE
    from teachers.flow import FlowTeacher

    teacher, dataset = FlowTeacher.from_pretrained(tiny_run.run / "teach"), HypothesisDataset(tiny_run.run / "sample")
    teacher.use_solver(FlowTeacher.CACHE_SOLVER)  # the cache has a solver of its own
    shard = load_file(str(tiny_run.run / "sample" / "shard-00002.safetensors"))
    assert len(dataset) == 40 and len(shard["seed"]) == 8
    for row in (0, 7):
        item = dataset[32 + row]
        seeds = hypothesis_seeds(0, shard["frame_index"][row : row + 1].numpy(), 4)
        assert seeds.tolist() == shard["seed"][row : row + 1].tolist()
        raw = teacher.sample_from_noise({STATE: item[STATE][None]}, noise_of(seeds, (16, 2)), 2)
        again = teacher.normaliser.normalise_action(raw)[0]
        assert float((again - item["hypotheses"]).abs().max()) < 2e-3


# -- again ---------------------------------------------------------------------------------------------------------


def test_a_second_run_by_accelerate_does_nothing_again(copied_run, whole) -> None:
    before = whole.stamps(copied_run.run)
    done = whole.run_command(copied_run.folder, "--config", str(copied_run.config), launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert whole.stamps(copied_run.run) == before
    reused = set(re.findall(r"^\[\d+/\d+\] (.+?): done before, reused", done.stdout, re.MULTILINE))
    assert reused == OTHERS | OF_STUDENTS | END
    assert " done in " not in done.stdout and "step/s" not in done.stderr


def test_a_changed_student_flag_makes_the_students_again_and_nothing_else(copied_run, main) -> None:
    line = ["--config", str(copied_run.config)]
    first = _manifests(copied_run.run)
    assert main([*line, "--student.learning-rate", "0.003"]) == 0
    second = _manifests(copied_run.run)
    assert _changed(first, second) == OF_STUDENTS | END
    for student in STUDENTS:
        weights = [load_file(str(path / "model.safetensors")) for path in copied_run.run.glob(f"distill/{student}*")]
        assert len(weights) == 2 and not weights[0]["trunk.position"].equal(weights[1]["trunk.position"])
    # back to the old value: what was put aside comes back, nothing is made
    assert main(line) == 0
    assert _manifests(copied_run.run) == first


def test_one_more_objective_is_one_more_student(copied_run, main) -> None:
    before = _manifests(copied_run.run)
    objectives = ["--student.objectives", "regression", "fidelity", DEFAULT]
    assert main(["distill", "--config", str(copied_run.config), *objectives]) == 0
    assert _changed(before, _manifests(copied_run.run)) == {"train/fidelity", "distill/fidelity"}


def test_every_way_of_making_a_student_learns_from_a_teacher_from_elsewhere(copied_run, main) -> None:
    # that teacher plans 16 actions, whatever the config says about one of its own; only imle_policy has no other horizon
    ways = ("set_imle", "large_pool", "noise_regression", "chamfer+0.5sinkhorn@0.1", "reflow", "consistency", "shortcut",
            "mean_flow")  # fmt: skip
    line = ["distill", "--config", str(copied_run.config), "--teacher.path", str(copied_run.run / "teach"), "--name", "other"]
    assert main([*line, "--teacher.horizon", "8", "--student.objectives", *ways, "--student.default", "reflow"]) == 0
    assert main([*line, "--student.objectives", "imle_policy", "--student.default", "imle_policy"]) == 0
    for name in (*ways, "imle_policy"):
        student = load_student(copied_run.folder / "runs" / "other" / "distill" / name)
        assert student.shape.horizon == 16
        assert isinstance(student, FlowMapStudent) == (name in ("reflow", "consistency", "shortcut", "mean_flow"))
        curve = json.loads((copied_run.folder / "runs" / "other" / "train" / name / "curve.json").read_text())
        assert curve[-1]["step"] == (20 if name == "imle_policy" else 10)


def test_a_diffusion_teacher_may_draw_its_cache_by_another_solver_than_its_own(copied_run, main) -> None:
    # with ddpm a chunk has no noise of its own to be paired with; with ddim, which the cache takes by default, it has
    line = ["distill", "--config", str(copied_run.config), "--teacher.kind", "diffusion", "--teacher.solver", "ddpm",
            "--student.objectives", "noise_regression", "--student.default", "noise_regression", "--name", "other"]  # fmt: skip
    assert main(line) == 0
    other = copied_run.folder / "runs" / "other"
    assert json.loads((other / "sample" / "index.json").read_text())["teacher"] == "diffusion_teacher, ddim"
    assert load_student(other / "distill" / "noise_regression").shape.horizon == 16


def test_few_observations_are_filled_up_with_perturbed_copies(copied_run, main) -> None:
    run = copied_run.run
    demonstrations = Demonstrations.load(run / "demos")
    count = demonstrations.num_frames + 7
    assert main(["sample", "--config", str(copied_run.config), "--sample.num-observations", str(count),
                 "--sample.perturbation", "0.2"]) == 0  # fmt: skip
    cached = HypothesisDataset(run / "sample")
    states_NOS = cached.batch(torch.arange(len(cached)))[STATE].numpy()
    demonstrated = windows(demonstrations, np.arange(demonstrations.num_frames), 2, 1)[0]
    assert len(states_NOS) == count
    np.testing.assert_array_equal(states_NOS[:-7], demonstrated)
    assert not np.isin(states_NOS[-7:], demonstrated).any()


def test_a_stage_does_what_it_needs_and_nothing_after_it(tmp_path: Path, tiny_config: Path, main, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demos", "--config", str(tiny_config), "--name", "short"]) == 0
    assert set(_manifests(tmp_path / "runs" / "short")) == {"demos"}


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("sample/shard-00001.safetensors", "sample"),
        ("sample/shard-00001.safetensors", "report"),
        ("demos/frames.safetensors", "distill"),
        (f"distill/{DEFAULT}/model.safetensors", "evaluate"),
        ("report/report.html", "report"),
    ],
)
def test_a_flipped_byte_is_refused_with_the_files_name(copied_run, main, capsys, name: str, stage: str) -> None:
    path = copied_run.run / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)
    before = _manifests(copied_run.run)
    assert main([stage, "--config", str(copied_run.config)]) == 2
    told = capsys.readouterr().err
    assert f"error: runs/{copied_run.run.name}/{name} was changed since it was written" in told
    assert "Delete" in told and "Traceback" not in told
    assert _manifests(copied_run.run) == before and path.read_bytes() == bytes(data)


def test_deleting_the_refused_stage_makes_it_again_to_the_last_bit(copied_run, main) -> None:
    before = {path.name: path.read_bytes() for path in copied_run.run.glob("sample/*.safetensors")}
    shutil.rmtree(copied_run.run / "sample")
    assert main(["distill", "--config", str(copied_run.config)]) == 0
    assert {path.name: path.read_bytes() for path in copied_run.run.glob("sample/*.safetensors")} == before


# -- interrupted ---------------------------------------------------------------------------------------------------

LONG = ["sample", "--sample.num-hypotheses", "32", "--sample.num-steps", "40", "--sample.num-observations", "160",
        "--sample.shard-size", "4", "--sample.batch-size", "4"]  # fmt: skip
"""Forty shards, a few seconds."""


def _shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tiny_run, whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The forty shards of a run that nobody disturbed, by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    line = [*LONG, "--config", str(tiny_run.config), "--teacher.path", str(tiny_run.run / "teach")]
    done = whole.run_command(folder, *line)
    assert done.returncode == 0, done.stderr
    shards = _shards(folder / "runs" / tiny_run.run.name / "sample")
    assert len(shards) == 40
    return shards


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def started(tiny_run, whole, tmp_path: Path) -> Iterator[Any]:
    """Starts the long sampling in a process group of its own; whatever is left of it in the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(processes: str) -> tuple[subprocess.Popen[str], list[str]]:
        line = [*LONG, "--config", str(tiny_run.config), "--teacher.path", str(tiny_run.run / "teach")]
        process = subprocess.Popen(
            whole.command(*line, "--processes", processes), cwd=tmp_path, env=whole.environment(), text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process, line

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_sampling_goes_on_where_it_was_stopped(
    started, undisturbed, whole, tiny_run, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "runs" / tiny_run.run.name
    process, line = started("2")
    _wait(lambda: len(list(run.glob("sample.*.partial/*.sha256"))) >= 4 or process.poll() is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=30)
    _wait(lambda: not any(map(_alive, workers)), 10)  # none of them goes on writing without its launcher
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert told.count("interrupted; the same command resumes from here") == 1 and "Traceback" not in told
    else:
        assert process.returncode == -signal.SIGKILL

    partial = next(run.glob("sample.*.partial"))
    finished = {path.stem for path in partial.glob("*.sha256")}
    before = {name: value for name, value in whole.stamps(partial, "*.safetensors").items() if name[:11] in finished}
    assert 4 <= len(before) < 40 and not (run / "sample").exists()

    done = whole.run_command(tmp_path, *line)
    assert done.returncode == 0, done.stderr
    after = whole.stamps(run / "sample", "*.safetensors")
    assert {name: after[name] for name in before} == before  # kept, not written again
    assert _shards(run / "sample") == undisturbed
    assert not list(run.glob("*.partial"))


def test_training_goes_on_where_it_was_stopped_and_ends_the_same(copied_run, main, monkeypatch) -> None:
    from distill.training import loop as training

    line = ["distill", "--config", str(copied_run.config)]
    straight = {path: path.read_bytes() for path in copied_run.run.glob("distill/*/model.safetensors")}
    assert len(straight) == 2
    for folder in ("train", "distill"):
        shutil.rmtree(copied_run.run / folder / DEFAULT)
    steps: list[int] = []
    real = training.learning_rate

    def interrupt_at_step_6(settings: Any, step: int) -> float:
        if step == 6 and not steps.count(-1):
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(step)
        return real(settings, step)

    monkeypatch.setattr(training, "learning_rate", interrupt_at_step_6)
    assert main(line) == 130
    assert not (copied_run.run / "train" / DEFAULT).exists()
    assert main(line) == 0
    assert steps == [0, 1, 2, 3, 4, 5, -1, 6, 7, 8, 9]
    assert straight == {path: path.read_bytes() for path in copied_run.run.glob("distill/*/model.safetensors")}


# -- two processes -------------------------------------------------------------------------------------------------


def test_two_processes_give_the_hypotheses_of_one(tiny_run, whole, tmp_path: Path) -> None:
    line = ["--config", str(tiny_run.config), "--teacher.path", str(tiny_run.run / "teach"), "--processes", "2"]
    done = whole.run_command(tmp_path, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = tiny_run.run, tmp_path / "runs" / tiny_run.run.name
    report = _report(two)
    assert report["made"]["processes"] == 2  # there really were two
    assert re.search(r"sample: 100%\|[^|]*\| 3/3", done.stderr)  # the shards of both processes
    assert _shards(two / "sample") == _shards(one / "sample") and len(_shards(two / "sample")) == 3
    for name in ("demos/frames.safetensors", "starts/starts.safetensors", "sample/index.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    # the reference sets are drawn one observation a call, so they are equal too, in the same order
    assert (two / "reference/reference.safetensors").read_bytes() == (
        one / "reference/reference.safetensors"
    ).read_bytes()
    for row in report["policies"]:
        assert row["episodes"] == 6 == len(row["episode_success"])
        episodes = json.loads((two / "evaluate" / row["name"] / "result.json").read_text())["episodes"]
        assert [episode["index"] for episode in episodes] == list(range(6))
        if row["name"].startswith("teacher"):  # its episodes are those of one process, but for the batch's rounding
            alone = json.loads((one / "evaluate" / row["name"] / "result.json").read_text())["episodes"]
            for first, second in zip(episodes, alone, strict=True):
                assert first["path"][1] == pytest.approx(second["path"][1], abs=1e-3)


def test_two_processes_with_batches_in_parts_train_as_one_with_whole_batches(tiny_run, whole, tmp_path: Path) -> None:
    line = ["teach", "--config", str(tiny_run.config), "--processes", "2", "--teacher.accumulate", "2"]
    done = whole.run_command(tmp_path, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (run / "train/teacher" for run in (tiny_run.run, tmp_path / "runs" / tiny_run.run.name))
    curves = [json.loads((folder / "curve.json").read_text()) for folder in (one, two)]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    for first, second in zip(*curves, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    weights = [load_file(folder / "candidate-000020/model.safetensors") for folder in (one, two)]
    for name, value in weights[0].items():
        if not name.endswith("to_qkv.bias"):  # a key's bias changes no softmax: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-4)
    keys = [json.loads((folder / "manifest.json").read_text())["key"] for folder in (one, two)]
    assert keys[0] == keys[1]  # the parts change rounding only, so a result with others is reused
