"""A base on disk, and a store on either database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.deploy.folders import make_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_model(tmp_path / "base")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "home" / "policies"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return Settings(home=tmp_path / "home", database_url=None)
    return Settings(home=tmp_path / "home", database_url=SecretStr(request.getfixturevalue("postgres_url")))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()
