"""Chat completions that are not streamed, as the SDK would ask for them, on connections of aiohttp's own.

The SDK makes each request anew from its parts, and each part anew from its own; what comes of it is the same each time
but for the body. A batch of a thousand spent two thirds of its processor time there (docs/decisions, 0013).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai


class PlainRequests:
    """Requests with the address, the key and the headers of an SDK client, which stays the one place to set them.

    It belongs to the event loop that it was made in.
    """

    def __init__(
        self, sdk: openai.AsyncOpenAI, tls: ssl.SSLContext, connect_timeout_s: float, max_connections: int
    ) -> None:
        # A header of the user's own (OPENAI_CUSTOM_HEADERS) wins over the key's; one that is no text is left out.
        headers = sdk.auth_headers | sdk.default_headers
        self._url = f"{sdk.base_url}chat/completions"
        self._session = aiohttp.ClientSession(
            headers={name: value for name, value in headers.items() if isinstance(value, str)},
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=tls),
            # How long the whole may take is the caller's to say.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(self._url),
        )

    async def close(self) -> None:
        await self._session.close()

    async def chat(self, body: Mapping[str, Any]) -> bytes:
        """The answer to a request with this body, as it came.

        Raises `openai.APIStatusError` for any status but success, and `openai.APIConnectionError` with aiohttp's
        exception as its cause for what went wrong on the way.
        """
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        try:
            async with self._session.post(self._url, data=content) as response:
                answer = await response.read()
                if 200 <= response.status < 300:
                    return answer
                raise _refused(response, await response.text(errors="replace"))
        except aiohttp.ClientError as error:
            # Some of them are a TimeoutError, too, which the caller would take for its own.
            raise openai.APIConnectionError(request=httpx2.Request("POST", self._url)) from error


def _proxy(url: str) -> str | None:
    """That of the environment, as httpx reads it: aiohttp does not know ALL_PROXY."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if proxy is None or proxy_bypass(parts.hostname or "") else proxy


def _refused(response: aiohttp.ClientResponse, text: str) -> openai.APIStatusError:
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    if isinstance(body, Mapping):
        body = body.get("error", body)
    message = body.get("message") if isinstance(body, Mapping) else None
    told = f" - {message}" if isinstance(message, str) and message else ""
    # Without its body, which is no longer encoded as its headers say.
    request = httpx2.Request("POST", str(response.url))
    seen = httpx2.Response(response.status, headers=[*response.headers.items()], request=request)
    return openai.APIStatusError(f"Error code: {response.status}{told}", response=seen, body=body)
