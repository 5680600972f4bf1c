"""Hatchling build hook: puts the generated protocol code into every wheel and every editable install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtocolBuildHook(BuildHookInterface[Any]):
    """Runs ``protos/generate.py`` before any wheel, editable ones included; an sdist has the protos only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates the code.

        Raises:
            RuntimeError: the generator failed; its own message is on stderr.
        """
        if self.target_name == "sdist":
            return
        generator = Path(self.root, "protos", "generate.py")
        # A process of its own: protoc's plugins must be found beside the build's own interpreter.
        finished = subprocess.run([sys.executable, str(generator)], check=False)
        if finished.returncode != 0:
            raise RuntimeError(f"{generator} failed with status {finished.returncode}; its message is above")
