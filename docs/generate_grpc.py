"""Writes the reference in docs/grpc.md from the comments of the public protos: run `python docs/generate_grpc.py`."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
PROTOS = DOCS.parent / "protos" / "rlm" / "v1"
PAGE = DOCS / "grpc.md"
_START, _END = "<!-- reference -->\n", "<!-- end of reference -->\n"


def reference() -> str:
    """Each service with its calls: what it is, its request's fields, its response's."""
    parts = []
    messages = {name: text for path in sorted(PROTOS.glob("*.proto")) for name, text in _messages(path.read_text())}
    for name in ("run", "sandbox", "server"):
        text = (PROTOS / f"{name}.proto").read_text()
        for comment, service, body in re.findall(r"((?://[^\n]*\n)*)service (\w+) \{\n(.*?)\n\}", text, re.DOTALL):
            parts.append(f"## {service}\n\n{_prose(comment)}\n")
            for said, call, asked, given in re.findall(
                r"((?:  //[^\n]*\n)*)  rpc (\w+)\(([\w ]+)\) returns \(([\w ]+)\);", body
            ):
                parts.append(f"### {call}\n\n{_prose(said)}\n".replace("\n\n\n", "\n\n"))
                shown = [messages[each.split()[-1]] for each in (asked, given)]
                parts.append(
                    "```proto\n" + f"rpc {call}({asked}) returns ({given});\n\n" + "\n\n".join(shown) + "\n```\n"
                )
    shared = [text for name, text in messages.items() if not name.endswith(("Request", "Response"))]
    parts.append("## Messages\n\n```proto\n" + "\n\n".join(shared) + "\n```\n")
    return "\n".join(parts)


def regenerated(page: str) -> str:
    head, _, rest = page.partition(_START)
    tail = rest.partition(_END)[2]
    return f"{head}{_START}\n{reference()}\n{_END}{tail}"


def _messages(text: str) -> list[tuple[str, str]]:
    found = re.findall(r"((?:^//[^\n]*\n)*^(?:message|enum) (\w+) \{(?:\}|.*?^\}))", text, re.DOTALL | re.MULTILINE)
    return [(name, whole) for whole, name in found]


def _prose(comment: str) -> str:
    lines = [line.strip().removeprefix("//").strip() for line in comment.strip().splitlines()]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(regenerated(PAGE.read_text()))
