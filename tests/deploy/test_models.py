"""Where the model of a deployment lies, by its name."""

from pathlib import Path

import pytest

from deploy.errors import NoSuchModel
from deploy.models import TINY, model_folder


def test_the_built_in_model_has_a_name_and_others_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder(TINY).parts[-3:] == ("trainer", "tiny", "model")
    assert model_folder(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert model_folder(".") == tmp_path.resolve()


def test_a_model_of_a_hub_is_found_where_it_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NoSuchModel, match="KUDOS_MODEL=someone/model: no such folder, and no hub gave it"):
        model_folder("someone/model")
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0a1b2c")
    (repository / "snapshots" / "0a1b2c").mkdir(parents=True)
    (repository / "snapshots" / "0a1b2c" / "config.json").write_text("{}")
    assert model_folder("someone/model") == repository / "snapshots" / "0a1b2c"
