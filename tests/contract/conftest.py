"""What several of this folder's files need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.guest_modules import DrivenWorker


@pytest.fixture(scope="module")
def worker() -> Iterator[DrivenWorker]:
    """A real worker that a file's tests share, each of whose cells finds what those before have left."""
    driven = DrivenWorker()
    driven.open()
    yield driven
    driven.close()
