"""The README's picture from a run's report: top views of teacher, regression student and default student in a row.

python benchmarks/picture.py runs/avoid-seed0/report/report.json docs/pictures/avoid.png
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distill.report import figures

HEIGHT, TITLE = 420, 46


def main(report: Path, target: Path) -> None:
    """Write the picture, titles with each policy's success, modes and Hz taken from the report."""
    results = json.loads(report.read_text())
    colours = figures.mode_colours(results["task"]["modes"])
    rollouts = results["trajectories"]
    policies = [policy for policy in results["policies"] if policy["name"] in rollouts]
    limits = figures.view_limits(results["scene"], [path["xy"] for name in rollouts for path in rollouts[name]])
    panels = []
    for policy in policies:
        view = figures.top_view(results["scene"], rollouts[policy["name"]], colours, limits)
        panel = Image.open(io.BytesIO(view)).convert("RGB")
        panel = panel.resize((round(panel.width * HEIGHT / panel.height), HEIGHT), Image.Resampling.LANCZOS)
        titled = Image.new("RGB", (panel.width, HEIGHT + TITLE), "white")
        titled.paste(panel, (0, TITLE))
        text = (
            f"{policy['label']}: {policy['success_rate']:.1%} solved,\n{policy['modes_reached']} of "
            f"{policy['modes_total']} ways, {policy['latency']['hz']:.0f} Hz"
        )
        ImageDraw.Draw(titled).text((12, 4), text, fill="black", font=ImageFont.load_default(16))
        panels.append(titled)
    row = Image.new("RGB", (sum(panel.width for panel in panels), HEIGHT + TITLE), "white")
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width
    target.parent.mkdir(parents=True, exist_ok=True)
    row.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
