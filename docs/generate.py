"""Writes what the documents say of the code: run `python docs/generate.py` after a change of settings, caps or policy.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. `python docs/generate.py picture RUN AT`
paints docs/images/live-tree.svg: the frame of the live tree AT seconds into the run recorded in RUN.
"""

from __future__ import annotations

import ast
import io
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from orchestrator.build import MAX_LEAF_CONTEXT_BYTES, PLAIN_CHARS
from orchestrator.config import RunSettings, describe
from orchestrator.hosting.settings import HostingSettings
from orchestrator.llm.metered import DEFAULT_OUTPUT_TOKENS
from orchestrator.llm.retries import Backoff
from orchestrator.rlm.batch import SHORT_PROMPT_CHARS
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.sandbox import wire, wire_out
from orchestrator.sandbox.asks import MAX_ASKS_IN_FLIGHT
from orchestrator.sandbox.policy import load_policy
from orchestrator.sandbox.removals import MOST_AT_A_TIME
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.sandbox.state_dir import SOCKET_PATH_MAX
from orchestrator.server.listening import ListenSettings
from orchestrator.store.database import MAX_RUN_BYTES, PAGE_BYTES
from orchestrator.wire import caps

DOCS = Path(__file__).parent
GUEST = DOCS.parent / "sandbox_image" / "guest"
PICTURE = DOCS / "images" / "live-tree.svg"
_WIDTH = 110  # columns of the picture


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- settings ----------------------------------------------------------------------------------------------------


def _settings(of_a_run: bool) -> str:
    rows = [
        (f"`{setting.name}`", f"`{setting.variable}`", _default(setting.name, setting.default), setting.text)
        for setting in describe()
        if (setting.name in RunSettings.__struct_fields__) is of_a_run
    ]
    return table(("setting", "variable", "default", "is"), rows)


def run_settings() -> str:
    return _settings(of_a_run=True)


def host_settings() -> str:
    return _settings(of_a_run=False)


def _default(name: str, value: object) -> str:
    if name == "state_dir":
        return "`/var/tmp/rlm-<uid>`"  # of whoever runs this, and so not the same everywhere
    return "not set" if value is None else f"`{json.dumps(value) if not isinstance(value, str) else value}`"


# --- limits ------------------------------------------------------------------------------------------------------


def wire_limits() -> str:
    style, backoff, sandbox = PromptStyle(), Backoff(), SandboxSettings(Path())
    asks, cells = "worker_subcalls.py", "worker_describe.py"
    rows = [
        ("questions in one `llm_batch`", f"{_guest(asks, 'MAX_PROMPTS'):,}", "`ValueError` in the cell"),
        ("prompts and contexts of one call", _size(_guest(asks, "MAX_BYTES")), "`ValueError` in the cell"),
        (
            "calls (`llm_query`, `llm_batch`) in flight from one sandbox",
            f"{_guest('worker_asks.py', 'MAX_IN_FLIGHT')}",
            f"more wait in the sandbox, as they do above {_size(_guest('worker_asks.py', 'MAX_BYTES_IN_FLIGHT'))} of "
            f"prompts; code that goes around this is refused at {MAX_ASKS_IN_FLIGHT}",
        ),
        (
            "one gRPC message, either way",
            _size(wire.MAX_MESSAGE_BYTES),
            "a call that is larger fails; a too large message of the guest's stream ends the sandbox",
        ),
        (
            "answers to one call, together",
            _size(wire_out.MAX_ANSWER_BYTES),
            "what has no room fails in its own slot, with reason `no_room`",
        ),
        (
            "context of a plain sub-call",
            _size(MAX_LEAF_CONTEXT_BYTES),
            "its slot fails with reason `too_long`; the model's own window is usually smaller",
        ),
        (
            "prompt that a recursive sub-call also gets as its query",
            f"{SHORT_PROMPT_CHARS:,} characters",
            "a longer one is its `context` only",
        ),
        (
            "output kept of one cell, for each of stdout and stderr",
            f"{_size(sandbox.output_head_bytes)} head + {_size(sandbox.output_tail_bytes)} tail",
            "the middle is left out and its size is told; the code runs on",
        ),
        (
            "output of a cell that the model is shown",
            f"{style.stdout_chars:,} characters of stdout, {style.stderr_chars:,} of stderr, "
            f"{style.traceback_chars:,} of a traceback",
            "head and tail are shown, with the true length",
        ),
        (
            "history that the model is shown",
            f"{style.history_chars:,} characters",
            "the oldest turns are shortened, down to half of it",
        ),
        ("value shown of a cell's last expression", f"{_guest(cells, 'REPR_CAP'):,} characters", "it is abridged"),
        (
            "final answer",
            _size(_guest(cells, "FINAL_CAP")),
            "it is cut; the run gives a notice with its true length",
        ),
        ("variables listed after a cell", f"{_guest(cells, 'MAX_VARIABLES')}", "the newest are listed"),
        (
            "output tokens of a call, under `max_tokens` or `max_cost_usd` and with no `max_output_tokens`",
            f"{DEFAULT_OUTPUT_TOKENS:,}",
            "the reply is cut (`length`); less when less of the budget is left; not sent to a model that refuses it as "
            "more than it can give",
        ),
        (
            "question that `adaptive_depth` makes plain, its context included",
            f"{PLAIN_CHARS:,} characters",
            "a larger one gets an RLM where the depth allows it",
        ),
        (
            "wait that an API can ask for (`Retry-After`)",
            f"{backoff.max_retry_after_s:g} s",
            "the next try comes after this time",
        ),
        ("silence of a sandbox", f"{sandbox.silence_timeout_s:g} s", "`SandboxLost` (`silent`)"),
        (
            "sandboxes being started at a time",
            f"{sandbox.starts_at_a_time}",
            "the next start waits",
        ),
        (
            "sandboxes being removed at a time",
            f"half of the processors, at least 1 and at most {MOST_AT_A_TIME}; {MOST_AT_A_TIME} when many are waiting",
            "the next one waits, its guest gone, and holds no room meanwhile",
        ),
        (
            "path of a sandbox's socket",
            f"{SOCKET_PATH_MAX} bytes",
            "`InvalidInput` at start; set a shorter `RLM_STATE_DIR`",
        ),
    ]
    return table(("limit", "value", "at the limit"), rows)


def service_limits() -> str:
    hosting, listen = HostingSettings(), ListenSettings(addresses=())
    rows = [
        ("`max_depth` of a run (`--max-run-depth`)", f"{hosting.max_depth}, or `capacity` if less", "`InvalidInput`"),
        ("runs at a time, over all callers", f"{hosting.max_running}", "`QuotaExceeded` (`max_running`)"),
        (
            "sandboxes and sessions that are kept, over all callers",
            "`capacity` less `max_depth`",
            "`QuotaExceeded` (`kept_sandboxes`); the rest is for runs, so that the deepest can always finish",
        ),
        ("context in a request", _size(hosting.max_inline_bytes), "`TooLarge`; our client uploads larger ones"),
        ("context that is uploaded", _size(hosting.max_upload_bytes), "`TooLarge`"),
        ("file written to or read from a sandbox", _size(caps.MAX_FILE_BYTES), "`FileFailed`"),
        ("query of a run", f"{caps.QUERY_BYTES // caps.MIB} MiB", "`TooLarge`; long text belongs into the context"),
        ("settings of a run, as JSON", f"{caps.SETTINGS_BYTES // caps.MIB} MiB", "`TooLarge`"),
        ("a page of runs", f"{PAGE_BYTES // caps.MIB} MiB", "it ends there; the next page goes on"),
        ("one request", _size(caps.MAX_REQUEST_BYTES), "RESOURCE_EXHAUSTED"),
        ("events that are recorded of one run", _size(MAX_RUN_BYTES), "further ones are not; the run goes on"),
        (
            "records that a slow watcher may be behind",
            f"{hosting.watcher_queue:,}",
            "they become one `missed`, and another watch has them",
        ),
        ("time that a session may be kept", f"{hosting.max_session_s:,.0f} s", "`InvalidInput`"),
        (
            "time that a kept sandbox may be idle",
            f"{hosting.idle_timeout_s:,.0f} s; {hosting.max_idle_timeout_s:,.0f} s when asked for",
            "it is removed",
        ),
        ("silence between two parts of an upload", f"{listen.upload_idle_s:,.0f} s", "the upload ends"),
        (
            "calls at a time, at the socket and at all other addresses each",
            f"{listen.max_calls:,}, of which {listen.max_calls // 4:,} that need no token",
            "RESOURCE_EXHAUSTED",
        ),
        ("calls of one token at a time", f"{listen.max_calls_each:,}", "RESOURCE_EXHAUSTED"),
        ("time for a request to come whole", f"{listen.first_message_s:,.0f} s", "DEADLINE_EXCEEDED"),
        ("streams of one connection", f"{listen.max_streams}", "its client waits with more"),
        ("labels", f"{caps.LABELS}, of {caps.LABEL_BYTES} bytes", "`InvalidInput`"),
    ]
    return table(("limit", "value", "at the limit"), rows)


def sandbox_policy() -> str:
    policy = load_policy()
    rows = []
    for name in policy.__struct_fields__:
        rule = getattr(policy, name)
        value = rule.value
        shown = json.dumps(value) if isinstance(value, str | bool | int | float) else _fields(value)
        rows.append((f"`{name}`", f"`{shown}`", rule.reason))
    return table(("rule", "value", "why"), rows)


def _fields(value: object) -> str:
    names: tuple[str, ...] = getattr(value, "__struct_fields__", ())
    if not names:
        return json.dumps(value)
    return ", ".join(f"{name}={json.dumps(getattr(value, name))}" for name in names)


_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.LShift: operator.lshift,
    ast.Mult: operator.mul,
}


def _guest(file: str, name: str) -> int:
    """A number from the guest program, which is read and not imported: its modules have no package here."""
    for node in ast.parse((GUEST / file).read_text()).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [
            name
        ]:
            return _number(node.value)
    raise LookupError(f"{file} has no constant {name}")


def _number(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_number(left), _number(right))
        case _:
            raise ValueError(f"not a constant: {ast.unparse(node)}")


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count:,} bytes"


# --- in and out --------------------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[], str]] = {
    "run settings": run_settings,
    "host settings": host_settings,
    "wire limits": wire_limits,
    "service limits": service_limits,
    "sandbox policy": sandbox_policy,
}
_PART = re.compile(r"<!-- generated: (?P<name>[a-z ]+) -->\n.*?<!-- end -->", re.DOTALL)


def regenerated(text: str) -> str:
    """The document with its generated parts as the code has them now. Raises `KeyError` for a part of no known name."""
    return _PART.sub(lambda part: f"<!-- generated: {part['name']} -->\n{PARTS[part['name']]()}\n<!-- end -->", text)


def paint(run: Path, at_s: float) -> str:
    from rich.console import Console

    from orchestrator.cli.live_tree import render
    from orchestrator.folds.journal import JournalReader
    from orchestrator.folds.tree import CallTree

    tree = CallTree()
    now = 0.0
    for record in JournalReader(run):
        now = now or record.at + at_s
        if record.at > now:
            break
        tree(record)
    console = Console(width=_WIDTH, record=True, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(render(tree, now, _WIDTH))
    svg = console.export_svg(title="make demo")
    # A picture in a document loads nothing: the viewer's own monospaced font does.
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: ?Fira Code, ?monospace", "font-family: monospace", svg)


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            for path in sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"]):
                text = path.read_text()
                if (fresh := regenerated(text)) != text:
                    path.write_text(fresh)
                    print(f"updated {path}")
            return 0
        case ["picture", run, at_s]:
            PICTURE.write_text(paint(Path(run), float(at_s)))
            return 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
