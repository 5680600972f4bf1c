"""What the engine answers to a removal, by a server that answers as one would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.engine_docker import DockerEngine

GONE = (204, "")
RUNS_NO_LONGER = (500, "Could not kill running container c, cannot remove - Container c is not running")
PODMAN_SAYS_SO = (500, "removing container c root filesystem: container state improper")
NO_SUCH = (404, "No such container: c")
UNDER_WAY = (409, "removal of container c is already in progress")
BROKEN = (500, "input/output error")


@asynccontextmanager
async def engine(
    monkeypatch: pytest.MonkeyPatch, *removals: tuple[int, str]
) -> AsyncIterator[tuple[DockerEngine, list[str]]]:
    asked: list[str] = []
    answers = iter(removals)

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10", "Components": []})

    async def remove(request: web.Request) -> web.Response:
        asked.append(request.match_info["name"])
        status, message = next(answers)
        return web.Response(status=204) if status == 204 else web.json_response({"message": message}, status=status)

    async def waited(request: web.Request) -> web.Response:
        return web.json_response({"StatusCode": 0})

    application = web.Application()
    application.router.add_get("/version", version)
    application.router.add_post("/v1.41/containers/{name}/wait", waited)
    application.router.add_delete("/v1.41/containers/{name}", remove)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{runner.addresses[0][1]}")
        docker = DockerEngine()
        try:
            yield docker, asked
        finally:
            await docker.close()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("first", [RUNS_NO_LONGER, PODMAN_SAYS_SO])
@pytest.mark.parametrize("then", [(GONE,), (NO_SUCH,), (UNDER_WAY,), (RUNS_NO_LONGER, GONE)])
async def test_a_container_that_ends_while_it_is_being_ended_is_removed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, first: tuple[int, str], then: tuple[tuple[int, str], ...]
) -> None:
    async with engine(monkeypatch, first, *then) as (docker, asked):
        await docker.destroy("c")
    assert asked == ["c"] * (1 + len(then))


async def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(monkeypatch, *[RUNS_NO_LONGER] * 3) as (docker, asked):
        with pytest.raises(SandboxUnavailable, match="is not running"):
            await docker.destroy("c")
    assert asked == ["c"] * 3


async def test_one_that_is_gone_already_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(monkeypatch, NO_SUCH) as (docker, asked):
        await docker.destroy("c")
    assert asked == ["c"]


async def test_any_other_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(monkeypatch, BROKEN) as (docker, asked):
        with pytest.raises(SandboxUnavailable, match="refused to remove a container: input/output error"):
            await docker.destroy("c")
    assert asked == ["c"]
