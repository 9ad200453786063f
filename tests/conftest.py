"""Fixtures that several folders of tests share, and how the tests are shared out between two processes."""

from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures_postgres"]

# A first call that loads torch's kernels, or a busy machine, is slow and not wrong.
settings.register_profile("kudos", deadline=None)
settings.load_profile("kudos")

HEAVY = {"engine", "browser", "postgres", "slow"}
SERVER = Path(__file__).parent / "server"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts engines, browsers and databases runs in two rows, one of them the server's, so that each of these is
    started once. The rest runs where there is room."""
    for item in items:
        if HEAVY & {mark.name for mark in item.iter_markers()}:
            row = "server" if SERVER in item.path.parents else "others"
            item.add_marker(pytest.mark.xdist_group(row))
