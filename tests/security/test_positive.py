"""A: what ordinary Python must be able to do, so that nothing above is won by breaking it."""

from __future__ import annotations

import pytest

from tests.security.arena import Arena
from tests.security.conftest import Found

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


async def works(arena: Arena, found: Found, code: str, expected: str) -> None:
    assert await arena.says(code, 60) == expected
    found("works")


async def test_A1_numpy_and_pandas(roomy: Arena, found: Found) -> None:
    code = "import numpy, pandas\nprint(pandas.Series(numpy.arange(10)).sum(), numpy.linalg.det(numpy.eye(3)))"
    await works(roomy, found, code, "45 1.0")


async def test_A2_threads(roomy: Arena, found: Found) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(32) as pool:\n"
        "    print(sum(pool.map(lambda n: n * n, range(100))))"
    )
    await works(roomy, found, code, "328350")


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_A3_multiprocessing(roomy: Arena, method: str, found: Found) -> None:
    code = (
        f"import multiprocessing\nwith multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "    print(pool.map(abs, [-1, -2, 3]))"
    )
    await works(roomy, found, code, "[1, 2, 3]")


async def test_A4_asyncio(roomy: Arena, found: Found) -> None:
    await works(
        roomy, found, "import asyncio\nprint(await asyncio.gather(*[asyncio.sleep(0, n) for n in 'ab']))", "['a', 'b']"
    )


async def test_A5_subprocess_of_python(roomy: Arena, found: Found) -> None:
    await works(
        roomy, found, "import subprocess, sys\ndone = subprocess.run([sys.executable, '-c', 'print(6 * 7)'])", "42"
    )


async def test_A6_sqlite_in_tmp(roomy: Arena, found: Found) -> None:
    code = (
        "import sqlite3\nwith sqlite3.connect('/tmp/db') as db:\n    db.execute('create table t(x)')\n"
        "    db.executemany('insert into t values (?)', [(n,) for n in range(1000)])\n"
        "    print(db.execute('select sum(x) from t').fetchone()[0])"
    )
    await works(roomy, found, code, "499500")


async def test_A7_an_array_of_200_MB(roomy: Arena, found: Found) -> None:
    await works(roomy, found, "import numpy\nprint(int(numpy.ones(25_000_000).sum()))", "25000000")


async def test_A8_unicode(roomy: Arena, found: Found) -> None:
    await works(
        roomy,
        found,
        "import os\nopen('/tmp/größe-中.txt', 'w').write('🎈')\nprint(open('/tmp/größe-中.txt').read(), 'ß'.upper())",
        "🎈 SS",
    )


async def test_A9_a_traceback_with_its_source_lines(roomy: Arena, found: Found) -> None:
    result = await roomy.result("def f(x):\n    return 1 / x\nf(0)")
    assert result.error is not None
    assert "return 1 / x" in result.error.traceback
    found("works")
