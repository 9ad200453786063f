"""What is hidden is not there, and is back afterwards."""

import sys

import pytest

from trainer.optional_imports import UNCALLED, without_optional


def test_what_is_hidden_cannot_be_imported_and_is_back_afterwards() -> None:
    import scipy.stats

    with without_optional():
        for name in UNCALLED:
            with pytest.raises(ImportError):
                __import__(name)
    assert sys.modules["scipy.stats"] is scipy.stats
    assert all(sys.modules.get(name, scipy) is not None for name in UNCALLED)
