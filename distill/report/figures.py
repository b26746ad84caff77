"""The report's pictures: plain values in, PNG bytes out, no pyplot and so no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.report.modes import HUES, UNKNOWN, ModeStyle
from distill.report.tables import number

if TYPE_CHECKING:  # matplotlib is imported by what draws, never at start-up
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1c2430", "#5b6675", "#e3e7ec"
TEACHER, STUDENT, OTHER = "#3b5b92", "#d1720f", "#8a94a3"
FAILED = "#b3261e"
ROLE_COLOURS = {"obstacle": "#49525f", "goal": "#8fc79a", "start": "#a9c4ea", "object": "#e5b567"}
MARKERS = {"teacher": "o", "student": "D", "baseline": "s"}
STAGES = {"preprocess_ms": "#b8c4d6", "encode_ms": "#7f9cc7", "head_ms": "#d1720f", "post_ms": "#8a94a3"}

Limits = tuple[float, float, float, float]
Curve = Sequence[Sequence[float]]


def view_limits(scene: Sequence[Mapping[str, Any]], paths: Sequence[Curve]) -> Limits:
    """(x low, x high, y low, y high) [m] that show the whole scene and all but the wildest points of the paths."""
    low, high = np.array([np.inf, np.inf]), np.array([-np.inf, -np.inf])
    for shape in scene:
        centre, half = np.asarray(shape["xy"], float), np.asarray(shape["size"], float)
        low, high = np.minimum(low, centre - half), np.maximum(high, centre + half)
    points = [array for array in (_points(path) for path in paths) if len(array)]
    if points:
        together = np.concatenate(points)
        low = np.minimum(low, np.percentile(together, 0.5, axis=0))
        high = np.maximum(high, np.percentile(together, 99.5, axis=0))
    if not np.all(np.isfinite([low, high])):
        return -1.0, 1.0, -1.0, 1.0
    margin = 0.05 * max(float((high - low).max()), 1e-3)
    return float(low[0] - margin), float(high[0] + margin), float(low[1] - margin), float(high[1] + margin)


def top_view(
    scene: Sequence[Mapping[str, Any]],
    trajectories: Sequence[Mapping[str, Any]],
    styles: Mapping[str, ModeStyle],
    limits: Limits,
) -> bytes:
    """Rollouts from above: successes in the style of their mode, failures grey with a red x where they ended."""
    figure, axes = _top_axes(limits)
    _draw_scene(axes, scene)
    for rollout in sorted(trajectories, key=lambda each: bool(each.get("success"))):
        points = _points(rollout["xy"])
        if not len(points):
            continue
        if rollout.get("success"):
            style = styles.get(rollout.get("mode") or "", UNKNOWN)
            axes.plot(points[:, 0], points[:, 1], color=style.colour, linestyle=style.line, linewidth=1.0, alpha=0.75, zorder=3)
        else:
            axes.plot(points[:, 0], points[:, 1], color="#9aa1ab", linewidth=0.8, alpha=0.55, zorder=3)
            axes.plot(*points[-1], marker="x", color=FAILED, markersize=5, markeredgewidth=1.3, alpha=0.8, zorder=5)
    return _png(figure, cut=True)


def chunk_set(
    scene: Sequence[Mapping[str, Any]],
    chunks: Sequence[Curve],
    here: Sequence[float] | None,
    colour: str,
    limits: Limits,
) -> bytes:
    """Every action chunk that one policy samples for one observation, from above; `here` is where the tool is."""
    figure, axes = _top_axes(limits)
    _draw_scene(axes, scene)
    for chunk in chunks:
        points = _points(chunk)
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.9, alpha=0.45, zorder=3)
    if here is not None:
        axes.plot(*here, marker="o", color=INK, markersize=6, zorder=6)
    return _png(figure, cut=True)


def success_against_speed(policies: Sequence[Mapping[str, Any]]) -> bytes:
    """Success rate with its 95 % interval over Hz (log), one point per policy that has both."""
    figure, axes = _axes(8.6, 4.4)
    shown = sorted((p for p in policies if p.get("latency")), key=lambda p: p["latency"]["hz"])
    places = []
    for policy in shown:
        hz, rate = policy["latency"]["hz"], 100 * policy["success_rate"]
        down, up = rate - 100 * policy["success_low"], 100 * policy["success_high"] - rate
        special = policy.get("is_default_student") or policy.get("is_reference_teacher")
        colour = {"teacher": TEACHER}.get(policy["kind"], STUDENT if special else OTHER)
        axes.errorbar(
            hz, rate, yerr=[[max(down, 0.0)], [max(up, 0.0)]], fmt=MARKERS[policy["kind"]],
            color=colour, markersize=9 if special else 6, elinewidth=1.4, capsize=3, zorder=4,
        )  # fmt: skip
        places.append((math.log10(hz), rate, _plain(policy["label"]), bool(special)))
    axes.set_xscale("log")
    logs = [place[0] for place in places]
    needed = min(0.6, 0.04 + 0.0095 * max(len(place[2]) for place in places))
    span = (max(logs) - min(logs) + 0.25) / (1 - needed)
    axes.set_xlim(10 ** (min(logs) - 0.25), 10 ** (min(logs) - 0.25 + span))
    axes.set_ylim(-4, 104)
    _label_apart(axes, places)
    _plain_numbers(axes)
    axes.set_xlabel("policy calls per second [Hz], log scale (further right is faster)")
    axes.set_ylabel("success [%] (higher is better)")
    return _png(figure)


def success_against_latency(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Success over the latency of a policy call [ms]: a line per policy, dotted where nothing disturbs it.

    Lines join the stated latencies, which are the same for all; large open markers are at a policy's own measured one, scaled.
    """
    figure, axes = _axes(8.6, 4.8)
    teachers = list(dict.fromkeys(row["policy"] for row in rows if not row["is_default_student"]))
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        student = mine[0]["is_default_student"]
        colour = STUDENT if student else (TEACHER, *HUES[2:])[teachers.index(policy) % (len(HUES) - 1)]
        marker = MARKERS["student" if student else "teacher"]
        for condition, line in (("disturbed", "-"), ("calm", ":")):
            stated = sorted((row["latency_ms"], row[condition]) for row in mine if row["scale"] is None)
            own = [(row["latency_ms"], row[condition]) for row in mine if row["scale"] is not None]
            for points, style, size, face in ((stated, line, 5, colour), (own, "", 9, "none")):
                if not points or (points is own and condition == "calm"):
                    continue
                rates = np.array([100 * each["success_rate"] for _, each in points])
                ends = np.array([[100 * each["success_low"], 100 * each["success_high"]] for _, each in points]).T
                name = f"{_plain(mine[0]['label'])}, {'own latency, scaled' if points is own else condition}"
                axes.errorbar(
                    [ms for ms, _ in points], rates, yerr=np.abs(ends - rates), linestyle=style, color=colour, marker=marker,
                    markersize=size, markerfacecolor=face, elinewidth=1.2, capsize=3, zorder=4, label=name,
                    alpha=0.5 if condition == "calm" else 1.0,
                )  # fmt: skip
    axes.set_xscale("symlog", linthresh=10)  # so that 0 has a place
    axes.set_xlim(left=0)
    axes.set_ylim(-4, 104)
    _plain_numbers(axes)
    axes.set_xlabel("latency of a policy call [ms], log scale above 10")
    axes.set_ylabel("success [%] (higher is better)")
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    return _png(figure)


def mode_histogram(groups: Sequence[Sequence[str]], series: Sequence[tuple[str, str, Mapping[str, int]]]) -> bytes:
    """Share of the successful rollouts that reached each mode, with 95 % Wilson intervals.

    groups: modes, side by side on a common ground. series: (label, colour, count per mode).
    """
    from scipy.stats import binomtest

    modes = [mode for group in groups for mode in group]
    figure, axes = _axes(9.6 if len(modes) > 8 else 6.4, 3.9)
    width = 0.82 / max(len(series), 1)
    for index, (label, colour, counts) in enumerate(series):
        total = sum(counts.values())
        reached = [counts.get(mode, 0) for mode in modes]
        shares = np.array([100 * count / total for count in reached])
        intervals = [binomtest(count, total).proportion_ci(method="wilson") for count in reached]
        ends = 100 * np.array([[each.low, each.high] for each in intervals]).T
        places = np.arange(len(modes)) + (index - (len(series) - 1) / 2) * width
        axes.bar(
            places, shares, width, color=colour, label=f"{_plain(label)} (successes: {total})", zorder=3, hatch="//" * index,
            edgecolor="white", linewidth=0, yerr=np.abs(ends - shares),
            error_kw={"elinewidth": 1.0, "ecolor": INK, "capsize": 2},
        )  # fmt: skip
    first = 0
    for place, group in enumerate(groups):
        if place % 2 == 0 and len(groups) > 1:
            axes.axvspan(first - 0.5, first + len(group) - 0.5, color="#f0f3f7", zorder=0, linewidth=0)
        first += len(group)
    axes.axhline(100 / max(len(modes), 1), color=SOFT, linewidth=1, linestyle=":", label="all modes equally often")
    turned = len(modes) > 6 or max((len(mode) for mode in modes), default=0) > 12
    slant: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(len(modes)), [_plain(mode) for mode in modes], **slant)
    axes.set_xlim(-0.6, len(modes) - 0.4)
    axes.set_ylabel("share of successes [%]")
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper right", fontsize=8, frameon=False, ncols=3)
    return _png(figure)


def latency_stages(policies: Sequence[Mapping[str, Any]]) -> bytes:
    """Where one call's time goes: a stacked bar per policy, a line at its whole median; the fast ones again, enlarged."""
    shown = [policy for policy in policies if (policy.get("latency") or {}).get("stages")]
    medians = [float(policy["latency"]["median_ms"]) for policy in shown]
    fast = [median for median in medians if median < 0.2 * max(medians)]
    panels = 2 if fast else 1
    figure = _figure(8.6, 1.2 + 0.42 * len(shown))
    for column, longest in enumerate([max(medians), max(fast, default=0.0)][:panels]):
        axes = figure.add_subplot(1, panels, column + 1)
        _dress(axes)
        _stage_bars(axes, shown, 1.28 * longest)
        names = [_plain(policy["label"]) for policy in shown] if column == 0 else [""] * len(shown)
        axes.set_yticks(range(len(shown)), names)
        axes.set_xlabel("median latency of one call [ms]" if column == 0 else "the same, enlarged [ms]", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", fontsize=8, frameon=False, ncols=len(STAGES) + 1)
    return _png(figure)


def _stage_bars(axes: Axes, shown: Sequence[Mapping[str, Any]], limit: float) -> None:
    for row, policy in enumerate(shown):
        left = 0.0
        for stage, colour in STAGES.items():
            value = float(policy["latency"]["stages"].get(stage) or 0.0)
            name = stage.removesuffix("_ms") if row == 0 else None
            axes.barh(row, value, left=left, height=0.62, color=colour, label=name, zorder=3)
            left += value
        median = float(policy["latency"]["median_ms"])
        whole = "whole call" if row == 0 else ""  # "" is no entry of the legend
        axes.vlines(median, row - 0.31, row + 0.31, color=INK, linewidth=1.4, zorder=4, label=whole)
        end = max(left, median)
        if end < limit:
            axes.text(end, row, f"  {number(policy['latency']['median_ms'])} ms", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, limit)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def training_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """One small panel per training: the losses are of different kinds, so they share no axis."""
    from matplotlib.ticker import MaxNLocator

    shown = {name: points for name, points in curves.items() if points}
    columns = 4 if len(shown) == 4 else 3  # one or two leave room, so that their letters are as large as elsewhere
    rows = math.ceil(len(shown) / columns)
    figure = _figure(2.4 * columns, 2.1 * rows)
    for index, (name, points) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        _dress(axes)
        steps, losses = [point["step"] for point in points], _losses(points)
        colour, marker = TEACHER if name.startswith("teach") else STUDENT, "o" if len(points) < 8 else ""
        axes.plot(steps, losses, color=colour, linewidth=1.3, marker=marker, markersize=3)
        finite = losses[np.isfinite(losses)]
        if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
            axes.set_yscale("log")
        axes.set_title(_plain(name), fontsize=9, color=INK, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axes.set_ylabel("loss", fontsize=8)
    return _png(figure)


def _losses(points: Sequence[Mapping[str, float]]) -> np.ndarray:
    return np.array([np.nan if point["loss"] is None else point["loss"] for point in points], dtype=float)


def _points(path: Curve) -> np.ndarray:
    """`[P, 2]`, rows that are not finite left out."""
    points = np.asarray(path, dtype=float).reshape(-1, 2)
    return points[np.all(np.isfinite(points), axis=1)]


def _plain(text: str) -> str:
    """Text that matplotlib shall not read as mathematics."""
    return str(text).replace("$", r"\$")


def _dress(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=8, labelcolor=INK)


def _plain_numbers(axes: Axes) -> None:
    """Numbers without exponents along a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=160)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    axes = figure.add_subplot()
    _dress(axes)
    return figure, axes


def _top_axes(limits: Limits) -> tuple[Figure, Axes]:
    wide, tall = limits[1] - limits[0], limits[3] - limits[2]
    height = min(max(5.0 * tall / wide + 0.4, 2.6), 8.0)
    figure, axes = _axes(5.0, height)
    axes.set_aspect("equal")
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    axes.set_xlabel("x [m]", fontsize=8, color=SOFT)
    axes.set_ylabel("y [m]", fontsize=8, color=SOFT)
    return figure, axes


def _draw_scene(axes: Axes, scene: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import Circle, Rectangle

    for shape in scene:
        colour = ROLE_COLOURS.get(shape["role"], OTHER)
        solid = shape["role"] == "obstacle"
        (x, y), (half_x, half_y) = shape["xy"], shape["size"]
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": INK if solid else colour, "linewidth": 0.8}
        style |= {"alpha": 0.7 if solid else 0.45, "zorder": 2 if solid else 1}  # below all paths: some lead over it
        if shape["kind"] == "circle":
            axes.add_patch(Circle((x, y), half_x, **style))
        else:
            axes.add_patch(Rectangle((x - half_x, y - half_y), 2 * half_x, 2 * half_y, **style))
        if shape.get("label"):
            axes.annotate(
                _plain(shape["label"]), (x, y - half_y), xytext=(0, -3), textcoords="offset points", ha="center",
                va="top", fontsize=7, color=INK, zorder=6,
            )  # fmt: skip


def _label_apart(axes: Axes, places: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write each point's name to its right, moved up or down until it clears the names already written."""
    low, high = axes.get_xlim()
    span = math.log10(high / low)
    taken = [(x - 0.01 * span, x + 0.01 * span, y) for x, y, _, _ in places]
    for x, y, label, strong in places:
        start = x + 0.016 * span
        end = start + 0.0092 * span * len(label)
        for shift in (0, *(sign * 5.5 * step for step in range(1, 9) for sign in (1, -1))):
            height = y + shift
            clear = all(abs(height - other) >= 5.2 or start > right or end < left for left, right, other in taken)
            if clear and -2 <= height <= 103:
                break
        taken.append((start, end, height))
        axes.annotate(
            label, (10**x, y), xytext=(10**start, height), fontsize=8.5, va="center", color=INK,
            weight="bold" if strong else "normal", zorder=6,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6} if shift else None,
        )  # fmt: skip


def _png(figure: Figure, cut: bool = False) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    extra: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05} if cut else {}
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None}, **extra)
    return buffer.getvalue()
