"""Who may call: bearer tokens, of which the server knows only the SHA-256.

The file is TOML, one table a token::

    [[token]]
    name = "alice"                # the principal
    sha256 = "9f86d0..."          # of the token; `rlm token new alice` makes both
    max_runs = 4                  # at a time; like max_sandboxes
    max_cost_usd = 20.0           # ever; like max_tokens
    max_stored_bytes = 1000000000 # of runs, events and contexts: over it, nothing is uploaded
    admin = false                 # sees and may cancel what others started

A token has 256 random bits: guessing one, or finding one for a hash, is out of reach, so a fast hash is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from orchestrator.errors import InvalidInput
from orchestrator.hosting.principals import Principal, Quotas

PREFIX = "rlm_"
ADMIN_NAME = "admin"  # of whoever calls on the Unix socket; what it made must not be a token's as well
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A token, as the file has it."""

    name: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    max_runs: _Count | None = None
    max_sandboxes: _Count | None = None
    max_cost_usd: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    max_tokens: _Count | None = None
    max_stored_bytes: _Count | None = None
    admin: bool = False

    @property
    def principal(self) -> Principal:
        quotas = Quotas(
            max_runs=self.max_runs,
            max_sandboxes=self.max_sandboxes,
            max_cost_usd=self.max_cost_usd,
            max_tokens=self.max_tokens,
            max_stored_bytes=self.max_stored_bytes,
        )
        return Principal(self.name, quotas, self.admin)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: tuple[Entry, ...] = ()


class Tokens:
    """The tokens that a server takes."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Raises `InvalidInput` naming the file and what is wrong in it."""
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
            entries = msgspec.convert(raw, _File).token
        except OSError as error:
            raise InvalidInput("--tokens", f"{path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
            raise InvalidInput("--tokens", f"{path}: {error}.", "Make entries with: rlm token new NAME") from error
        for entry in entries:
            check_name(entry.name, f"--tokens, {path}: name")
        if not entries:
            raise InvalidInput("--tokens", f"{path} has no token.", "Make one with: rlm token new NAME")
        if len({entry.sha256 for entry in entries}) < len(entries):
            raise InvalidInput("--tokens", f"{path} has the same token twice.", "Remove one of the entries.")
        return cls(entries)

    def principal_of(self, token: str) -> Principal | None:
        """Takes as long for a wrong token as for a right one."""
        digest = hash_of(token)
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry.principal
        return found


def check_name(name: str, called: str = "NAME") -> None:
    """Raises `InvalidInput`."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            called, f"has 1 to 64 letters, digits and . _ @ -, and begins with one of the first; it is {name!r}."
        )
    if name == ADMIN_NAME:
        raise InvalidInput(called, f"may not be {name!r}: so is called who calls on the server's own socket.")


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def as_toml(entry: Entry) -> str:
    """The entry as the lines to append to the file."""
    lines = ["[[token]]"]
    for name, value in msgspec.to_builtins(entry).items():
        # A JSON string of these is a TOML string too: names and hashes have no control characters.
        lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"
