"""The page's one picture, drawn in the peers' environment, which has matplotlib; where that is not, there is none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page import Section

DRAW = """
import json, sys
import matplotlib
matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
import matplotlib.pyplot as plt

bars = json.load(sys.stdin)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for axis, kind in zip(axes, ("start", "cell")):
    chosen = sorted((b for b in bars if b[0] == kind), key=lambda b: -b[2])
    names = [name for _, name, _ in chosen]
    axis.barh(names, [value for _, _, value in chosen], color=["#2563eb" if "ours" in n else "#9ca3af" for n in names])
    axis.set_xscale("log")
    axis.set_xlabel("ms, median, log scale")
    axis.set_title({"start": "To have a sandbox", "cell": "print(1 + 1) in it"}[kind])
    for name, (_, _, value) in zip(names, chosen):
        axis.text(value, name, f" {value:,.3g}", va="center", fontsize=8)
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(sys.argv[1], format="svg", metadata={"Date": None})
"""


def plot(sections: Sequence[Section], target: Path) -> bool:
    """Bars of the benchmark of peers; returns whether there is a picture now."""
    from benchmarks.against_peers import PYTHON  # at the top it would be the first benchmark, by its being imported

    rows = [row for each in sections if each.benchmark.name == "peers" for row in each.rows if row.samples]
    if not rows or not PYTHON.exists():
        return False
    bars = [[*row.what.split(": ", 1), row.median] for row in rows]
    drawn = subprocess.run(
        [str(PYTHON), "-c", DRAW, str(target)], input=json.dumps(bars), text=True, capture_output=True, check=False
    )
    return drawn.returncode == 0
