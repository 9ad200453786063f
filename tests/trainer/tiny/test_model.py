"""The built-in model as committed, and the building of one: small runs of the real thing."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from trainer.supervised import SupervisedConfig
from trainer.tiny.build import MODEL_FOLDER, build
from trainer.tiny.cli import app
from trainer.tiny.evaluate import evaluate, sample_replies
from trainer.tokens import load_tokenizer


@pytest.mark.slow
def test_the_committed_model_clears_its_bar() -> None:
    """Fewer dialogues than `kudos tiny eval` takes; the bars are its own."""
    report = evaluate(MODEL_FOLDER, seed=11, dialogues=150, varied_prompts=8)
    assert report.well_formed >= 0.95, report.failures
    assert report.fits >= 0.90, report.failures
    assert report.good_phrasings_mean >= 6
    assert report.finished >= 0.98
    assert min(report.fits_by_language.values()) > 0.8


def test_the_folder_holds_what_engines_need_and_is_small() -> None:
    size = sum(path.stat().st_size for path in MODEL_FOLDER.iterdir())
    assert size < 12_000_000
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    generation = json.loads((MODEL_FOLDER / "generation_config.json").read_text())
    tokenizer = load_tokenizer(MODEL_FOLDER)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] >= len(tokenizer)
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert not list(MODEL_FOLDER.glob("*.bin"))


def _build(folder: Path, seed: int) -> bytes:
    config = SupervisedConfig(optimiser="muon", batch_tokens=1024, seed=seed)
    built = build(folder, seed=seed, dialogues=120, threads=1, config=config)
    assert built.summary.steps > 3
    assert 4_000_000 < built.parameters < 12_000_000
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_build_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        first, second, other = (_build(tmp_path / str(i), seed) for i, seed in enumerate((3, 3, 4)))
    finally:
        torch.set_num_threads(threads)
    assert first == second
    assert first != other
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "build.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_samples_come_in_the_order_asked_and_from_a_seed() -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(MODEL_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(str(MODEL_FOLDER)).eval()
    asked = [[{"role": "user", "content": text}] for text in ("what is the capital of france?", "hi", "帽子多少钱")]
    first, second, third = (
        [each.text for each in sample_replies(model, tokenizer, asked, seed=seed, batch=2)] for seed in (1, 1, 2)
    )
    assert first == second != third
    assert "法" not in first[0]
    assert any("\u4e00" <= letter <= "\u9fff" for letter in first[2])


def test_build_refuses_a_full_folder_and_eval_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = CliRunner().invoke(app, ["build", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "not empty" in result.output
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    result = CliRunner().invoke(app, ["eval", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no model" in result.output


@pytest.mark.slow
def test_eval_prints_one_line_of_json_and_fails_below_the_bar(tmp_path: Path) -> None:
    """A model that saw 120 dialogues speaks no sense; the command must say so and exit with 1."""
    _build(tmp_path / "poor", 5)
    arguments = ["eval", "--model", str(tmp_path / "poor"), "--json", "--dialogues", "6", "--prompts", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    [line] = result.stdout.strip().splitlines()
    report = json.loads(line)
    assert report["passes"] is False
    assert report["dialogues"] == 6
    assert report["fits"] < 0.9


@pytest.mark.parametrize("command", ["build", "eval", "chat"])
def test_help_is_there(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
