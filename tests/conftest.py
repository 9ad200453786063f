"""Fixtures that several folders of tests share."""

pytest_plugins = ["tests.fixtures_postgres"]
