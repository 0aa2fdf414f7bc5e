"""What the benchmarks' tests share."""

from collections.abc import Iterator

import pytest
from benchmarks.backbones import forget_shared


@pytest.fixture(autouse=True)
def _own_backbones() -> Iterator[None]:
    """A run has one precision, and casts the weights that its ways share; each test is a run of its own."""
    forget_shared()
    yield
    forget_shared()
