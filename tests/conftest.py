"""Fixtures that several folders of tests share."""

from hypothesis import settings

pytest_plugins = ["tests.fixtures_postgres"]

# A first call that loads torch's kernels, or a busy machine, is slow and not wrong.
settings.register_profile("kudos", deadline=None)
settings.load_profile("kudos")
