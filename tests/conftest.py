"""One BLAS thread a test process (two processes run side by side), and hypothesis settings that are the same everywhere."""

import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from minigrad.table import PRIMITIVES  # noqa: E402
from minigrad.tensor import IMPLEMENTATIONS  # noqa: E402

settings.register_profile(
    "suite",
    deadline=None,
    print_blob=True,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("suite")


@pytest.fixture
def table_as_it_was():
    """For tests that add primitives: others walk the table, and must not find them there."""
    tables = PRIMITIVES, IMPLEMENTATIONS
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before):
        table.clear()
        table.update(old)
