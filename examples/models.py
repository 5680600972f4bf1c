"""Who plays the models of an example: the real API where there is a key, else a scripted stand-in on loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dotenv import dotenv_values

from orchestrator.testing.scripted import Policy, ScriptedServerThread


@contextmanager
def model_settings(policies: Mapping[str, Policy]) -> Iterator[dict[str, Any]]:
    """The settings that `RLM` needs to reach its models, for the block; says on stderr which they are.

    `policies` are the scripted models by depth, the root's first; their names do not matter to a real API.
    """
    if os.environ.get("OPENAI_API_KEY") or dotenv_values(".env").get("OPENAI_API_KEY"):
        print("The models are the real API's (OPENAI_API_KEY is set): this costs money.\n", file=sys.stderr)
        yield {}
        return
    print("The models are SCRIPTED (no OPENAI_API_KEY); the containers and calls are real.\n", file=sys.stderr)
    with ScriptedServerThread(policies) as server:
        yield {"base_url": server.base_url, "api_key": "not-needed", "models": tuple(policies)}
