"""Chat completions that are not streamed: requests as the SDK would make them, made out once and for all.

The SDK makes each request anew from its parts, and each part anew from its own; what comes of it is the same each time
but for the body. A batch of a thousand spent two thirds of its processor time there (docs/decisions, 0013).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies

import aiohttp
import httpx2
import openai

# What the other transport says of itself, and of one body.
_OF_HTTPX = frozenset({"host", "connection", "accept-encoding", "content-length"})


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class PlainRequests:
    """Requests with the address, the key and the headers of an SDK client, which stays the one place to set them.

    Made by aiohttp where the way is straight, and by `http`, the SDK's own client, where it is not: through a proxy, or
    after a redirect. It belongs to the event loop that it was made in.
    """

    def __init__(
        self,
        sdk: openai.AsyncOpenAI,
        http: httpx2.AsyncClient,
        tls: ssl.SSLContext,
        connect_timeout_s: float,
        limits: httpx2.Limits,
    ) -> None:
        self._http = http
        # A header of the user's own (OPENAI_CUSTOM_HEADERS) stands for another; one without a text is left out.
        merged = {name.lower(): value for name, value in [*sdk.auth_headers.items(), *sdk.default_headers.items()]}
        given = {name: value for name, value in merged.items() if isinstance(value, str)}
        url = sdk.base_url.copy_with(raw_path=sdk.base_url.raw_path + b"chat/completions")
        self._pattern = http.build_request("POST", url, headers=given)
        self._url = str(self._pattern.url)
        # With each request, and not of the session: aiohttp gives a session's headers to proxies, too.
        self._headers = {name: value for name, value in self._pattern.headers.items() if name not in _OF_HTTPX}
        self._is_straight = not getproxies().keys() & {url.scheme, "all"}
        self._session = _session(tls, connect_timeout_s, limits)

    async def close(self) -> None:
        await self._session.close()

    async def chat(self, body: Mapping[str, Any]) -> bytes:
        """The answer to a request with this body, as it came.

        Raises `openai.APIStatusError` for any status but success. For what went wrong on the way,
        `openai.APIConnectionError` with aiohttp's exception as its cause, or `httpx2.RequestError`.
        """
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        answer = await self._by_aiohttp(content) if self._is_straight else None
        if answer is None or 300 <= answer.status < 400:
            self._is_straight = False
            answer = await self._by_httpx(content)
        if 200 <= answer.status < 300:
            return answer.body
        raise self._refusal(answer)

    async def _by_aiohttp(self, content: bytes) -> _Answer:
        try:
            async with self._session.post(
                self._url, data=content, headers=self._headers, allow_redirects=False
            ) as response:
                return _Answer(response.status, [*response.raw_headers], await response.read())
        except aiohttp.ClientError as error:
            # Some of them are a TimeoutError, too, which the caller would take for its own.
            raise openai.APIConnectionError(request=self._pattern) from error

    async def _by_httpx(self, content: bytes) -> _Answer:
        pattern = self._pattern
        headers = [(name, value) for name, value in pattern.headers.raw if name.lower() != b"content-length"]
        request = httpx2.Request(
            pattern.method, pattern.url, headers=headers, content=content, extensions=pattern.extensions
        )
        response = await self._http.send(request)
        return _Answer(response.status_code, response.headers.raw, response.content)

    def _refusal(self, answer: _Answer) -> openai.APIStatusError:
        body: object = answer.body.decode("utf-8", "replace").strip()
        try:
            body = json.loads(answer.body)
        except (ValueError, RecursionError):
            pass
        if isinstance(body, Mapping):
            body = body.get("error", body)
        message = body.get("message") if isinstance(body, Mapping) else None
        told = f" - {message}" if isinstance(message, str) and message else ""
        # Without its body, which is no longer encoded as its headers say.
        seen = httpx2.Response(answer.status, headers=answer.headers, request=self._pattern)
        return openai.APIStatusError(f"Error code: {answer.status}{told}", response=seen, body=body)


def _session(tls: ssl.SSLContext, connect_timeout_s: float, limits: httpx2.Limits) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limits.max_connections or 0, keepalive_timeout=limits.keepalive_expiry, ssl=tls
        ),
        # How long the whole may take is the caller's to say.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
