"""The table of probes in docs/security.md, from the last run of the suite: `python -m tests.security.table`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.security.conftest import RESULTS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
_PART = re.compile(r"(<!-- probes -->\n).*?(<!-- end of probes -->)", re.DOTALL)
_MAX_CELL = 90  # characters


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a line a probe and expectation, a column a runtime."""
    lines: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in rows:
        cells = lines.setdefault((row["probe"], row["expectation"]), {})
        cells.setdefault(row["runtime"], set()).add(_cell(row))
    text = ["| probe | expectation | runc | gVisor |", "|---|---|---|---|"]
    for (probe, expectation), cells in sorted(lines.items(), key=lambda line: (_order(line[0][0]), line[0][1])):
        host = {f"{cell} (host's side)" for cell in cells.get("host", ())}
        runc, gvisor = (_joined(cells.get(name) or host) for name in ("runc", "runsc"))
        text.append(f"| {probe} | {expectation} | {runc} | {gvisor} |")
    return "\n".join(text) + "\n"


def neighbors(rows: list[dict[str, str]]) -> str:
    """One line: how long a neighbor waited for its answer while probes attacked."""
    said = []
    for letter in "RKC":
        waits = sorted((int(row["neighbor_ms"]), row["probe"]) for row in rows
                       if "neighbor_ms" in row and row["probe"][0] == letter)  # fmt: skip
        if waits:
            middle, (longest, probe) = waits[len(waits) // 2][0], waits[-1]
            said.append(f"{letter}: {middle} ms in the middle of {len(waits)}, at most {longest} ms ({probe})")
    return f"A neighbor's cell and question while the probes attacked, on the machine of that run: {'; '.join(said)}.\n"


def _cell(row: dict[str, str]) -> str:
    match row["outcome"]:
        case "passed":
            return " ".join(row["found"].split()) or "held"
        case "skipped":
            return "not tried"
        case _:
            return "**NOT HELD**"


def _joined(cells: set[str]) -> str:
    text = "; ".join(sorted(cells)) or "not tried"
    return (text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…").replace("|", "\\|")


def _order(probe: str) -> tuple[int, int]:
    return "RKPNCA".index(probe[0]), int(probe[1:])


def main() -> int:
    try:
        rows = list(json.loads(RESULTS.read_text("utf-8")).values())
    except FileNotFoundError:
        print("There are no results. Run the suite first: make test, or pytest tests/security", file=sys.stderr)
        return 1
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(_PART.sub(lambda part: part[1] + table(rows) + "\n" + neighbors(rows) + part[2], text), "utf-8")
    failed = sum(row["outcome"] == "failed" for row in rows)
    print(f"{DOCUMENT.name}: {len(rows)} results, {len({row['probe'] for row in rows})} probes, {failed} not held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
