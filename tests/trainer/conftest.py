"""Fixtures of the trainer's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.models import make_backbone, make_model_folder
from trainer.backbone import Backbone


@pytest.fixture
def one_thread() -> Iterator[None]:
    """At these sizes handing work to other threads costs more than the work; and sums keep one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def backbone(one_thread: None) -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")
