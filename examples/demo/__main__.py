"""The main job, end to end: a recursive run over the source of this machine's Python.

Without an API key the models are scripted (see `policies.py`); with one, or with MODEL=local, they are not. The rest is
the same: this program starts the models' server where one is needed, runs the command that it prints, and checks the
answer against a direct computation.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

from examples.demo.policies import policies
from examples.demo.question import EXCLUDED, QUESTION, computed_answer, read_sources, source_folders
from orchestrator.folds.journal import JournalReader
from orchestrator.folds.totals import Totals
from orchestrator.testing.scripted import ScriptedServerThread

# A small model on two cores reads a passage or so a second: enough for these, not for all.
LOCAL_FOLDERS = ("asyncio", "email", "importlib")
RECORD = Path(".build/demo/run.jsonl")


@dataclass(frozen=True)
class Setting:
    """Who plays the models, in words and as the environment of the command."""

    says: str
    environ: Mapping[str, str]
    checked: bool  # whether the answer must be the computed one
    folders: tuple[str, ...] = field(default=())


def main() -> int:
    choice = os.environ.get("RLM_DEMO_MODEL") or "auto"
    with _setting(choice) as setting:
        print(f"\n{setting.says}\n", file=sys.stderr)
        places = source_folders()
        if setting.folders:
            places = [places[0] / folder for folder in setting.folders]
        sources = read_sources(places)
        size = sum(len(text.encode()) for text in sources.values())
        print(
            f"The context: {len(sources):,} files, {size / 1e6:.1f} MB, from {' and '.join(map(str, places))}\n",
            file=sys.stderr,
        )
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        command = ["rlm", "ask", QUESTION, *map(str, places), "--include", "*.py"]
        for name in EXCLUDED:
            command += ["--exclude", name]
        command += ["--depth", "2", "--record", str(RECORD)]
        print(f"$ {shlex.join(command)}\n", file=sys.stderr, flush=True)
        asked = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *command[1:]],
            env={**os.environ, **setting.environ},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if asked.returncode:
            return asked.returncode
        return _judge(asked.stdout.strip(), sources, setting)


def _judge(answer: str, sources: Mapping[str, str], setting: Setting) -> int:
    started = time.monotonic()
    expected = computed_answer(sources)
    seconds = time.monotonic() - started
    print(answer)
    right = answer == expected
    print(f"\nComputed directly, by a loop over the same text ({seconds:.1f} s):", file=sys.stderr)
    print("the same answer." if right else expected, file=sys.stderr)
    totals = Totals()
    for record in JournalReader(RECORD):
        totals(record)
    spent = totals.by_depth
    print("\nModel calls by depth: " + ", ".join(f"{d}: {s.calls}" for d, s in sorted(spent.items())), file=sys.stderr)
    print(
        "\nWhere to look next:\n"
        f"  rlm show {RECORD}              the call tree of this run (--cells, --calls for all of it)\n"
        f"  rlm show {RECORD} --verify     replay its decisions\n"
        "  rlm exec -                                 run untrusted Python in a sandbox\n"
        "  rlm doctor                                 what this machine has and lacks\n"
        "  README.md, docs/architecture.md            how it works",
        file=sys.stderr,
    )
    return 0 if right or not setting.checked else 1


@contextmanager
def _setting(choice: str) -> Iterator[Setting]:
    key = os.environ.get("OPENAI_API_KEY") or dotenv_values(".env").get("OPENAI_API_KEY")
    if choice == "auto" and key:
        yield Setting("The models are the real API's: OPENAI_API_KEY is set. This costs money.", {}, checked=False)
        return
    if choice not in ("auto", "scripted", "local"):
        yield Setting(f"The model is {choice!r} of the real API.", {"RLM_MODEL": choice}, checked=False)
        return
    with ScriptedServerThread(policies()) as server:
        scripted = {
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "not-needed",
            "RLM_MODELS": "scripted-root,scripted-part,scripted-leaf",
        }
        if choice != "local":
            yield Setting(
                "There is no OPENAI_API_KEY, so the models of this demo are SCRIPTED: a stand-in server on loopback\n"
                "that returns prepared code and reads passages with a regular expression. Everything else is real:\n"
                "the containers, the code that runs in them, gRPC, HTTP, the fan-out, the budget, the record.",
                scripted,
                checked=True,
            )
            return
        from examples.demo.local_model import MODEL, serving

        with serving() as base_url:
            yield Setting(
                f"The leaf calls go to a REAL small model, {MODEL}, on this machine's processor; the code of the two\n"
                "depths above it is SCRIPTED, since a model of this size writes none. Do not expect wisdom of it: the\n"
                "answer is compared, not required to be right.",
                {
                    **scripted,
                    "RLM_MODELS": f"scripted-root,scripted-part,{MODEL}",
                    "RLM_ENDPOINTS": json.dumps({MODEL: {"base_url": base_url}}),
                    "RLM_MAX_CONCURRENT": "4",
                    "RLM_MAX_OUTPUT_TOKENS": "512",
                },
                checked=False,
                folders=LOCAL_FOLDERS,
            )


if __name__ == "__main__":
    sys.exit(main())
