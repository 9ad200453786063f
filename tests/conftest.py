"""Fixtures that several folders of tests share, and how the tests are shared out between processes."""

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.fixtures_postgres"]

# A first call that loads torch's kernels, or a busy machine, is slow and not wrong.
settings.register_profile("kudos", deadline=None)
settings.load_profile("kudos")

WITH_A_SERVER = ("tests/server", "tests/server/web")
"""Folders whose tests share a server with a real engine, which takes half a minute to start."""


class Sharing(LoadScopeScheduling):
    """A file's tests run in one process, and so do all of a folder whose tests share a server.

    Not by xdist's groups: it writes them into node ids, which pytest 9.2 does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder in WITH_A_SERVER else file


@pytest.hookimpl(optionalhook=True)  # where xdist is not at work there is nothing to share out
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing | None:
    return Sharing(config, log) if config.getvalue("dist") == "loadscope" else None
