"""Every setting is in docs/training.md, with its default; and the document names none that does not exist."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from deploy.gate import GateLimits
from trainer.checkpoint import RunFolder
from trainer.config import (
    EvaluationConfig,
    LoraConfig,
    PpoConfig,
    RewardConfig,
    RewardModelConfig,
    SftConfig,
    TrainerSettings,
    TrainingConfig,
)
from trainer.held_lease import LEASE_SECONDS

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {
    "At the top:": TrainingConfig,
    "`reward_model`:": RewardModelConfig,
    "`sft`:": SftConfig,
    "`reward`:": RewardConfig,
    "`ppo`:": PpoConfig,
    "`evaluation`:": EvaluationConfig,
    "`gate`:": GateLimits,
}


def _table(heading: str) -> dict[str, str]:
    """Setting: default, as the table after the heading has them. A row may name several."""
    body = TEXT.split(f"\n{heading}\n", 1)[1].lstrip().split("\n\n", 1)[0]
    rows = [line.split("|")[1:3] for line in body.splitlines()[2:]]
    return {name: default.strip() for names, default in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_setting_is_documented_in_its_table_and_no_other(heading: str) -> None:
    assert set(_table(heading)) == set(SECTIONS[heading].model_fields)


@pytest.mark.parametrize("heading", SECTIONS)
def test_defaults_are_those_of_the_code(heading: str) -> None:
    found, settings = _table(heading), SECTIONS[heading]()
    for name in SECTIONS[heading].model_fields:
        value = getattr(settings, name)
        if isinstance(value, int | float):
            assert float(found[name]) == value, name
        elif isinstance(value, LoraConfig):
            assert found[name] == f"rank {value.rank}, alpha {value.alpha:g}"
        elif isinstance(value, str):
            assert found[name] == f"`{value}`"


@pytest.mark.parametrize("name", LoraConfig.model_fields)
def test_the_adapters_settings_are_named(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", TrainerSettings.model_fields)
def test_the_watchers_settings_are_named_as_the_environment_has_them(name: str) -> None:
    default = TrainerSettings.model_fields[name].default
    shown = "none" if default is None else f"{default:g}"
    assert f"| `KUDOS_TRAIN_{name.upper()}` | {shown} |" in TEXT


def test_the_example_config_is_valid() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.S)
    assert TrainingConfig.model_validate_json(example).ppo.iterations == 40


def test_the_files_of_a_run_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for path in (folder.reward_model.name + "/", folder.report.name, "examples.json", "checkpoint.pt", "error.txt"):
        assert f"`{path}`" in TEXT
    assert f"{LEASE_SECONDS:.0f} seconds" in " ".join(TEXT.split())
