"""What the terms of a report mean."""

from __future__ import annotations

from distill.report.policies import Results


def terms(results: Results) -> list[tuple[str, str]]:
    """(term, meaning) for the terms that these results use."""
    kind, modes = results["kind"], len(results["task"]["modes"])
    words = []
    if kind == "run":
        words.append(("Teacher", "a policy trained on demonstrations. It makes an action chunk slowly, by refining random "
                      "noise in many steps."))  # fmt: skip
    elif kind == "conversion":
        words.append(("Teacher", "the policy that you gave. It makes an action chunk in several network evaluations."))
    if kind != "comparison":
        words.append(("Student", "a policy trained on the teacher's samples. It makes an action chunk in one network "
                      "evaluation."))  # fmt: skip
    baselines = [policy["label"] for policy in results["policies"] if policy["kind"] == "baseline"]
    if baselines:
        words.append(("Baseline", f"a policy without training, for comparison: {', '.join(baselines).lower()}."))
    words.append(("Action chunk", "the next actions of the robot, planned in one policy call."))
    if results["measured_success"] or kind == "run":
        words.append(("Mode", "one of the distinct ways to solve this task, such as passing an obstacle on one side; there "
                      f"{'is' if modes == 1 else 'are'} {modes}."))  # fmt: skip
    words += [
        ("Set", "the action chunks that a policy samples for one observation."),
        ("Recall", "the share of the teacher's samples that lie within the student's set: low where the student misses what "
         "the teacher does."),
        ("Coverage", "the share of the teacher's samples with a student's sample near them: stricter than recall where the "
         "student's samples are spread out."),
        ("Energy distance", "how far apart two sets are; 0 is equal. The floor is what two sets of the teacher itself score."),
        ("NFE", "number of function evaluations: how often the network runs for one policy call."),
        ("Latency", "how long one policy call takes. Half of the calls take less than the median, 95 of 100 less than p95."),
        ("Hz", "policy calls per second: 1 divided by the median latency. Each call gives several actions."),
    ]  # fmt: skip
    if results["measured_success"]:
        words.append(("95 % interval", "success is counted on a limited number of episodes, so the rate has an error. If the "
                      "evaluation were repeated with other starts, 95 of 100 such intervals would contain the policy's true "
                      "rate. More episodes make the interval narrower; it says nothing about other tasks, robots or "
                      "trainings."))  # fmt: skip
    return words
