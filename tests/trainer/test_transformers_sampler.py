"""Rollouts without vLLM: whole, repeatable, and with the logprobs that the trainer itself computes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.trainer.models import END, make_model_folder
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.logprobs import score_logprobs
from trainer.lora import LoraAdapter
from trainer.sampler import Rollout
from trainer.transformers_sampler import TransformersSampler

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [list(range(5, 5 + length)) for length in (3, 9, 4, 17, 2, 6)] * 12
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")


def _gap(backbone: Backbone, rollouts: Sequence[Rollout], weights: dict[str, torch.Tensor]) -> float:
    found = score_logprobs(backbone, [r.prompt for r in rollouts], [r.reply for r in rollouts], TEMPERATURE, weights)
    gaps = [abs(float(found[row, t]) - value) for row, r in enumerate(rollouts) for t, value in enumerate(r.logprobs)]
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_samples_from_the_weights_that_it_was_given(folder: Path, dtype: torch.dtype) -> None:
    bound = 1e-5 if dtype is torch.float32 else 0.05
    backbone = Backbone.load(folder, dtype)
    adapter = LoraAdapter(backbone, LoraConfig(rank=4, alpha=8.0), seed=1)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        merged = adapter.merged()
    sampler = TransformersSampler(folder, end_id=END, max_model_len=64, dtype=dtype)

    def sample(seed: int) -> list[Rollout]:
        return sampler.sample(PROMPTS, max_tokens=12, temperature=TEMPERATURE, seed=seed)

    sampler.update(backbone, {})
    base, same, other = sample(1), sample(1), sample(2)
    assert base == same
    assert base != other
    assert _gap(backbone, base, {}) < bound
    sampler.update(backbone, merged)
    adapted = sample(1)
    assert _gap(backbone, adapted, merged) < bound
    assert _gap(backbone, adapted, {}) > 4 * bound, "the adapter acts"
    sampler.update(backbone, {})
    assert sample(1) == base


def test_what_a_model_likes_to_be_sampled_with_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Many models ship a penalty for repetition, or a cut; the trainer's logprobs know of neither."""
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"repetition_penalty": 1.3, "min_p": 0.2}')
    drawn = []
    for each in (folder, tmp_path / "model"):
        sampler = TransformersSampler(each, end_id=END, max_model_len=64)
        sampler.update(Backbone.load(each), {})
        drawn.append(sampler.sample(PROMPTS, max_tokens=12, temperature=TEMPERATURE, seed=1))
    assert drawn[0] == drawn[1]


def test_replies_end_at_their_end_or_at_their_limit_and_keep_their_prompt(folder: Path) -> None:
    backbone = Backbone.load(folder)
    sampler = TransformersSampler(folder, end_id=END, max_model_len=64)
    sampler.update(backbone, {})
    rollouts = sampler.sample(PROMPTS, max_tokens=12, temperature=2.0, seed=0)
    assert [rollout.prompt for rollout in rollouts] == PROMPTS
    for rollout in rollouts:
        assert len(rollout.reply) == len(rollout.logprobs)
        assert rollout.ended == (rollout.reply[-1] == END)
        assert END not in rollout.reply[:-1]
        assert rollout.ended or len(rollout.reply) == 12
    assert {rollout.ended for rollout in rollouts} == {True, False}
