"""The stage `report`: collects all measurements into one dictionary and writes the report from it."""

from __future__ import annotations

import copy
import datetime
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config import Config
from distill.evaluation.diversity import cached_figures
from distill.evaluation.fidelity import set_fidelity
from distill.evaluation.real_time import paired_rows
from distill.evaluation.statistics import success_figures
from distill.inputs.recorded import Opened, Recording
from distill.inputs.teachers import TeacherSource
from distill.report.data import picture_of
from distill.report.page import write_report
from distill.runtime.context import Context
from distill.runtime.execution import in_order
from distill.runtime.stage import FolderStage, Input, Stage
from distill.stages.choose_student import ChooseStudent
from distill.stages.choose_teacher import ChooseTeacher
from distill.stages.demonstrations import RecordDemonstrations
from distill.stages.evaluate import CLIP_EPISODES, EvaluatePolicy
from distill.stages.generalisation import MeasureGeneralisation
from distill.stages.in_place.choose import ChooseInPlace
from distill.stages.oracle import ReplayDemonstrations
from distill.stages.real_time import RollOutInRealTime
from distill.stages.sample import SampleHypotheses
from distill.stages.starts import RecordStarts
from distill.stages.timing.frontier import MeasureFrontier
from distill.stages.timing.latency import MeasureLatency
from distill.stages.train_teacher import TrainTeacher
from distill.store.machine import hardware
from distill.store.manifest import installed_packages, read_manifest, version
from distill.worlds.contract import Clip, RolloutJob, World
from envs.recorded.inspection import described
from envs.specs import IMAGES, STATE
from teachers.adapters.teacher import AdapterTeacher
from teachers.networks.observations import sources_of

KINDS = ("run", "conversion", "comparison")
LAYOUT = 3
"""Increased when the page changes, so that the report of a finished run is written again."""
EXPLORED, EXPLORED_SAMPLES, EXPLORED_ACTIONS = 6, 24, 8
"""Held-out observations whose sets the reader can look at; samples of each set, and action dimensions, at most."""


@dataclass(frozen=True)
class WriteReport(FolderStage):
    """kind: of the command. evaluated: every policy, the reference first. statistics: source of the normaliser that sets are
    compared in.

    What a command does not have is None or (): a comparison trains nothing, a conversion has no demonstrations.
    """

    kind: str
    config: Config
    world: World
    evaluated: tuple[EvaluatePolicy, ...]
    latency: MeasureLatency
    statistics: TeacherSource
    sample: SampleHypotheses | None = None
    chosen: tuple[ChooseStudent | ChooseInPlace, ...] = ()
    train_teacher: TrainTeacher | None = None
    choose_teacher: ChooseTeacher | None = None
    demonstrations: RecordDemonstrations | None = None
    starts: RecordStarts | None = None
    real_time: tuple[RollOutInRealTime, ...] = ()
    oracle: ReplayDemonstrations | None = None
    generalisation: MeasureGeneralisation | None = None
    frontier: MeasureFrontier | None = None
    recording: Recording | None = None
    opened: tuple[Opened, ...] = ()
    name = "report"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        inputs: dict[str, Input | tuple[Input, ...]] = {"latency": self.latency}
        if self.real_time:
            inputs["real_time"] = self.real_time
        if self.oracle is not None:
            inputs["oracle"] = self.oracle
        if self.generalisation is not None:
            inputs["generalisation"] = self.generalisation
        if self.frontier is not None:
            inputs["frontier"] = self.frontier
        return inputs

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "layout": LAYOUT, "default": self.config.student.default, "run": self.config.folder.name,
                "labels": {each.policy.name: each.policy.label for each in self.evaluated}}  # fmt: skip

    def run(self, context: Context, folder: Path) -> None:
        if context.is_main:
            alone = context.by_itself()
            results = {each.policy.name: each.result(alone) for each in self.evaluated}
            with alone.counter(3, "report", "part") as bar:
                clips = self._clips(alone, results, folder)
                bar.update()
                collected = self.collect(alone, results, clips)
                bar.update()
                write_report(folder, collected)
                bar.update()

    # -- the whole --------------------------------------------------------------------------------------------------

    def collect(self, context: Context, results: dict[str, Any], clips: Mapping[str, str]) -> dict[str, Any]:
        """The report's `results` (see distill.report.page). clips: paths by the policies' names."""
        spec, config = self.world.spec, self.config
        policies = self._policies(context, results)
        collected: dict[str, Any] = {
            "schema_version": 1, "kind": self.kind, "run": config.folder.name, "measured_success": self.measured_success,
            "task": {
                "name": spec.name, "summary": spec.summary, "modes": list(spec.modes), "dt_s": spec.dt_s,
                "max_steps": spec.max_steps, "action_names": list(spec.action.names),
            },
            "made": self._made(context),
            "data": self._data(context),
            "policies": policies,
            "curves": {stage.name.removeprefix("train/"): read_json(stage.folder(context) / "curve.json")
                       for stage in self._trained},
            "clips": dict(clips),
            "fidelity_floor": self._floor(context),
            "external": [self._external(each) for each in self.opened if isinstance(each.policy, AdapterTeacher)],
            "explored": self._explored(context, results),
        }  # fmt: skip
        if self.starts is not None:
            collected |= self._seen_from_above(context, results)
            collected["distilling"] = self.distilling(context.folder)
            collected["real_time"] = self._real_time(context, policies)
        # reports of state-only runs have no entry for the observation
        if not config.observation.is_plain:
            collected["observation"] = asdict(config.observation)
        if self.generalisation is not None:
            collected["generalisation"] = self.generalisation.result(context)
        if self.frontier is not None:
            collected["frontier"] = self._frontier(context, self.frontier, results)
        if self.demonstrations is not None:
            folders = {policy["label"]: each.folder(context) for policy, each in zip(policies, self.evaluated, strict=True)}
            oracle = {} if self.oracle is None else {"Oracle": self.oracle.folder(context)}
            collected |= self.world.report_facts(self.demonstrations.folder(context), {**oracle, **folders})
        return collected

    @property
    def measured_success(self) -> bool:
        return self.evaluated[0].rollouts is not None

    @property
    def _trained(self) -> list[Stage[Path]]:
        return [*([self.train_teacher] if self.train_teacher else []), *(each.candidates for each in self.chosen)]

    def _made(self, context: Context) -> dict[str, Any]:
        seconds = {
            stage.name: (read_manifest(stage.folder(context)) or {}).get("seconds")
            for stage in in_order([self]) if stage.name != self.name
        }  # fmt: skip
        return {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "seed": self.config.seed,
            "hardware": hardware(context.device), "threads": torch.get_num_threads(), "dtype": "float32",
            "packages": installed_packages(), "processes": context.accelerator.num_processes,
            "commands": [shlex.join(["flow2one", *sys.argv[1:]])], "wall_s": seconds, "version": version(),
            "config": json.loads(json.dumps(asdict(self.config), default=str)), "timing": self.latency.machine(context),
        }  # fmt: skip

    def _data(self, context: Context) -> dict[str, Any]:
        """What policies were trained on, and the hypotheses."""
        data: dict[str, Any] = {"observations": None, "hypotheses_per_observation": None, "cache_num_steps": None,
                                "cache_bytes": None}  # fmt: skip
        if self.demonstrations is not None:
            info = read_json(self.demonstrations.folder(context) / "info.json")
            data |= {"episodes": info["num_episodes"], "frames": info["num_frames"]}
        if self.recording is not None:
            recorded = self.recording.recorded
            data |= {
                "observations_from": str(recorded.path), "frames": len(recorded),
                "for_training": len(self.recording.frames["train"]),
                "recording": described(recorded, self.recording.observation_steps),
                "features": {name: list(recorded.features[name]) for name in self.recording.features},
            }  # fmt: skip
        if self.sample is not None and any(each.candidates.hypotheses is not None for each in self.chosen):
            folder = self.sample.folder(context)
            index = read_json(folder / "index.json")
            data |= {
                "observations": index["observations"], "hypotheses_per_observation": index["num_hypotheses"],
                "cache_num_steps": index["num_steps"], "drawn_by": index["teacher"],
                "cache_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
                **cached_figures(folder, self.world.spec.action.weights),
            }  # fmt: skip
        return data

    # -- policies ---------------------------------------------------------------------------------------------------

    def _policies(self, context: Context, results: Mapping[str, Any]) -> list[dict[str, Any]]:
        latency = self.latency.result(context)
        reference = self.evaluated[0].policy.name
        return [self._row(context, each, results, latency, reference) for each in self.evaluated]

    def _row(
        self, context: Context, stage: EvaluatePolicy, results: Mapping[str, Any], latency: Mapping[str, Any], reference: str
    ) -> dict[str, Any]:
        policy, config = stage.policy, self.config
        name, result = policy.name, results[policy.name]
        selection = config.evaluate.student_selection
        chosen = next((each for each in self.chosen if each.candidates.recipe_name == name), None)
        row: dict[str, Any] = {
            "name": name, "label": policy.label, "kind": policy.kind, "objective": name if chosen else None,
            "is_default_student": chosen is not None and name == config.student.default,
            "is_reference_teacher": name == reference, "num_steps": policy.num_steps,
            "parameters": result["parameters"], "nfe": result["nfe"],
            "candidates": selection.candidates if policy.kind == "student" and selection.uses_candidates else 1,
            "latency": latency[name], "speedup": latency[reference]["median_ms"] / latency[name]["median_ms"],
            "fidelity": result["fidelity"], "observation_modes": result.get("observation_modes"),
            "dimensions": result.get("dimensions"), "validation": None,
            "warm_start": None if chosen is None else chosen.candidates.begins_with_teacher,
            "observes": list(sources_of(policy.policy(context).shape)),
        }  # fmt: skip
        if chosen is not None:
            row["validation"] = read_json(chosen.folder(context) / "validation.json")
        elif name == reference and self.choose_teacher is not None:
            row["validation"] = read_json(self.choose_teacher.folder(context) / "validation.json")
        if "summary" in result:
            summary = result["summary"]
            row |= success_figures(result, results[reference], self.world.spec.modes)
            row |= {"switch_rate": summary["switch_rate"], "jerk": summary["jerk_rms"],
                    "out_of_distribution_share": summary["out_of_distribution_share"]}  # fmt: skip
        return row

    def _external(self, opened: Opened) -> dict[str, Any]:
        """An adapter's process: interpreter, packages and device."""
        assert isinstance(opened.policy, AdapterTeacher)
        facts = opened.policy.description
        return {"label": opened.label, "kind": facts.kind, "device": facts.device, "hardware": facts.hardware,
                "torch": facts.torch, "python": facts.python, "separable": facts.separable}  # fmt: skip

    def _floor(self, context: Context) -> dict[str, Any]:
        """Fresh samples of the reference against others of it: the distance due to sampling alone."""
        sets = self.evaluated[0].reference.result(context)
        first = self.evaluated[0]
        compared_in = self.statistics.normaliser(context) if first.statistics is None else first.compared_in(context)
        normaliser = copy.deepcopy(compared_in).cpu()
        again, reference = (normaliser.normalise_action(sets[name]) for name in ("floor", "reference"))
        values: dict[str, Any] = dict(set_fidelity(again, reference, torch.tensor(self.world.spec.action.weights)))
        return values | {"observations": again.shape[0], "samples": again.shape[1]}

    def _explored(self, context: Context, results: Mapping[str, Any]) -> dict[str, Any]:
        """Sets of the reference and of the policies compared with it, for a few held-out observations, raw units.

        The sets of `evaluate` are not stored; drawn again with their random streams, they are the same.
        """
        first, sets = self.evaluated[0], self.evaluated[0].reference.sets
        wanted = self.config.student.default if self.chosen else self.evaluated[-1].policy.name
        reference = first.reference.cached_result(context)["reference"].numpy()
        rows = _from_most_to_least_diverse(reference, EXPLORED)
        seen, spec = sets.observations.held_out(context), self.world.spec
        names = list(spec.action.names)[:EXPLORED_ACTIONS]
        drawn = {first.policy.name: reference[rows]}
        for each in self.evaluated[1:]:
            if each.policy.name == wanted:
                policy = each.policy.policy(context)
                drawn[wanted] = np.stack([sets.draw(context, policy, row, wanted) for row in rows])
        return {
            "actions": names, "dt_s": spec.dt_s,
            "observations": [
                {"row": row, "state": _rounded(seen[STATE][row, -1]), "picture": _picture(seen, row)} for row in rows
            ],
            "state_names": list(spec.state_names) if len(spec.state_names) == seen[STATE].shape[-1] else [],
            "sets": {name: _rounded(chunks[:, :EXPLORED_SAMPLES, :, : len(names)]) for name, chunks in drawn.items()},
        }  # fmt: skip

    # -- of runs in a world -----------------------------------------------------------------------------------------

    @property
    def _shown(self) -> list[str]:
        """The policies that are drawn: the reference, the regression student, the default student."""
        there = [each.candidates.recipe_name for each in self.chosen]
        named = (name for name in ("regression", self.config.student.default) if name in there)
        return list(dict.fromkeys([self.evaluated[0].policy.name, *named]))

    def _seen_from_above(self, context: Context, results: Mapping[str, Any]) -> dict[str, Any]:
        """The scene, the paths of the test episodes, and the sets of chunks for one observation."""
        assert self.starts is not None
        reference = self.evaluated[0].policy.name
        observation = self.starts.cached_result(context)["observations"][results[reference]["planned_at"], -1]
        return {
            "scene": self.world.scene(),
            "trajectories": {
                name: [{"mode": episode["mode"], "success": episode["success"], "failure": episode["failure"],
                        "xy": episode["path"]} for episode in results[name]["episodes"]]
                for name in self._shown
            },
            "planned_sets": {
                "observation_xy": [float(observation[0]), float(observation[1])],
                **{name: np.asarray(results[name]["planned_set"])[..., :2].tolist() for name in self._shown},
            },
        }  # fmt: skip

    def _clips(self, context: Context, results: Mapping[str, Any], folder: Path) -> dict[str, str]:
        if self.starts is None:
            return {}
        latency = self.latency.result(context)
        shown = [
            Clip(each.policy.name, each.policy.policy(context), results[each.policy.name], each.folder(context),
                 latency[each.policy.name]["median_ms"])
            for each in self.evaluated if each.policy.name in self._shown
        ]  # fmt: skip
        if self.oracle is not None:
            shown.insert(0, Clip("oracle", None, self.oracle.result(context), self.oracle.folder(context)))
        evaluate = self.config.evaluate
        job = RolloutJob("test", "test", folder, evaluate.execution_horizon, self.config.seed, evaluate.student_selection,
                         keep_actions=CLIP_EPISODES)  # fmt: skip
        return self.world.clips(self.starts.cached_result(context)["test"].numpy(), shown, job, folder)

    def _real_time(self, context: Context, policies: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Results of the real-time rollouts; None without any."""
        if not self.real_time:
            return None
        results = [stage.result(context) for stage in self.real_time]
        labels = {policy["name"]: policy["label"] for policy in policies}
        return {
            "disturbance": self.world.disturbance.summary, "dt_s": self.world.spec.dt_s,
            "every_steps": results[0]["every_steps"], "selection": asdict(self.config.real_time_selection),
            "delays_per_query": results[0]["delays_per_query"],
            "rows": paired_rows(results, labels, self.config.student.default),
        }  # fmt: skip

    def _frontier(self, context: Context, frontier: MeasureFrontier, results: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The default student by the number of samples a query draws, the evaluated number among them, in order."""
        reference, name = results[self.evaluated[0].policy.name], frontier.student.name
        evaluated = {**results[name], "samples": self.config.evaluate.selection_candidates,
                     "latency": self.latency.result(context)[name]}  # fmt: skip
        rows = sorted([*frontier.result(context), evaluated], key=lambda row: row["samples"])
        return [{"samples": row["samples"], "latency": row["latency"],
                 **success_figures(row, reference, self.world.spec.modes)} for row in rows]  # fmt: skip

    def distilling(self, run: Path) -> dict[str, Any]:
        """Processor seconds of all processes; share: cost of the default student relative to the teacher's training.

        sample_cpu_s is None for a student that is not trained on the teacher's samples.
        """
        default = next(each for each in self.chosen if each.candidates.recipe_name == self.config.student.default)
        sampled = default.candidates.hypotheses is not None
        teacher = cpu_seconds(run, self.train_teacher)
        sample = cpu_seconds(run, self.sample) if sampled else None
        students = {each.candidates.recipe_name: student_seconds(run, each.candidates.recipe_name) for each in self.chosen}
        trained = students[self.config.student.default]
        known = teacher and trained and (sample or not sampled)
        return {"teacher_cpu_s": teacher, "sample_cpu_s": sample, "students": students,
                "share": (trained + (sample or 0.0)) / teacher if known else None}  # type: ignore[operator]


def _from_most_to_least_diverse(chunks_FSTA: np.ndarray, most: int) -> list[int]:
    """At most `most` of the F observations, evenly spaced in the variance of their S chunks, the largest first."""
    order = np.argsort(-np.nan_to_num(chunks_FSTA).var(1).mean((1, 2)), kind="stable")
    return [int(row) for row in order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]]


def _rounded(values: np.ndarray) -> Any:
    """Four decimals, or four digits of values below 1, as lists."""
    scale = float(np.abs(np.nan_to_num(values)).max(initial=0.0))
    places = 4 if scale >= 0.1 else 4 - math.floor(math.log10(scale)) if scale else 4
    return np.round(values.astype(float), places).tolist()


def _picture(seen: Mapping[str, np.ndarray], row: int) -> str:
    """The first image of an observation as a data URI; "" without any."""
    names = [name for name in seen if name.startswith(IMAGES)]
    return picture_of(names[0], seen[names[0]][row, -1]) if names else ""


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def cpu_seconds(run: Path, stage: Stage[Any] | None) -> float | None:
    """Processor seconds of a stage of the run in this folder; None when not measured."""
    manifest = None if stage is None else read_manifest(run / stage.name)
    return (manifest or {}).get("cpu_seconds") or None


def student_seconds(run: Path, name: str) -> float | None:
    """Processor seconds of a student's training and calibration; None when not measured."""
    trained = (read_manifest(run / f"train/{name}") or {}).get("cpu_seconds") or None
    calibration = run / f"distill/{name}/calibration.json"
    return trained + read_json(calibration)["cpu_seconds"] if trained and calibration.is_file() else trained
