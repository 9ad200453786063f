"""The backbone, layer by layer, is transformers' own forward; padding changes nothing; other layouts are refused."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tests.trainer.models import FAMILIES, VOCAB, causal_lm, make_backbone
from trainer.backbone import ADAPTED, Backbone
from trainer.batches import Batch
from trainer.errors import UnsupportedModel
from trainer.ppo import reply_logprobs

pytestmark = pytest.mark.usefixtures("one_thread")


def _ids(rows: int = 3, steps: int = 11) -> Tensor:
    return torch.randint(2, VOCAB, (rows, steps), generator=torch.Generator().manual_seed(4))


def _logits(backbone: Backbone, ids: Tensor, *cuts: int) -> Tensor:
    hidden = backbone.embed(ids)
    bounds = [0, *cuts, backbone.depth]
    for start, stop in pairwise(bounds):
        hidden = backbone.run(hidden, start, stop)
    return backbone.logits(backbone.normed(hidden))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_run_one_by_one_give_what_transformers_gives(family: str, tied: bool) -> None:
    model = causal_lm(family, tie_word_embeddings=tied)
    expected = model(input_ids=_ids()).logits
    backbone = Backbone(model)
    assert expected.std() > 0.1, "the model must have something to say"
    torch.testing.assert_close(_logits(backbone, _ids()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_logits(backbone, _ids(), 1, 2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_weights_take_the_place_of_the_frozen_ones_and_leave_no_trace(family: str) -> None:
    model = causal_lm(family)
    backbone = Backbone(model)
    before = _logits(backbone, _ids())
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: backbone.weight(name) + 0.05 * torch.randn(backbone.weight(name).shape, generator=generator)
        for layer in range(backbone.depth)
        for name in [f"{layer}.{linear}.weight" for linear in ADAPTED]
    }
    hidden = backbone.run(backbone.embed(_ids()), 0, backbone.depth, changed)
    found = backbone.logits(backbone.normed(hidden))
    assert torch.equal(_logits(backbone, _ids()), before)
    # What a checkpoint of the merged weights says in transformers itself.
    other = causal_lm(family, seed=9)
    other.load_state_dict(backbone.merged_state(changed), strict=True)
    torch.testing.assert_close(found, other(input_ids=_ids()).logits, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


@torch.no_grad()
def test_padding_changes_no_logprob_and_the_logprob_is_read_where_the_token_is_predicted() -> None:
    model = causal_lm()
    backbone = Backbone(model)
    prompts, replies = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 16, 17, 1], [1]]
    together = Batch.of(prompts, replies, pad_id=0)
    otherwise = Batch.of(prompts, replies, pad_id=23)
    hidden = backbone.run(backbone.embed(together.input_ids_BT), 0, backbone.depth)
    found, _ = reply_logprobs(backbone, hidden, together, temperature=0.7)
    hidden = backbone.run(backbone.embed(otherwise.input_ids_BT), 0, backbone.depth)
    torch.testing.assert_close(reply_logprobs(backbone, hidden, otherwise, 0.7)[0], found)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].double() / 0.7
        table = torch.log_softmax(logits, -1)
        expected = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(reply)]
        assert found[row, : len(reply)].tolist() == pytest.approx(expected, abs=1e-5)
        assert not found[row, len(reply) :].any()


@torch.no_grad()
def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    backbone = make_backbone()
    batch = Batch.of([[5, 6]], [[7, 8, 1]], pad_id=0)
    hidden = backbone.run(backbone.embed(batch.input_ids_BT), 0, backbone.depth)
    _, entropy = reply_logprobs(backbone, hidden, batch, temperature=1.3)
    table = torch.log_softmax(backbone.logits(backbone.normed(hidden))[0, 1:4].double() / 1.3, -1)
    torch.testing.assert_close(entropy[0].double(), -(table.exp() * table).sum(-1), rtol=1e-5, atol=1e-5)


def test_the_backbone_is_frozen() -> None:
    backbone = make_backbone()
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training


def test_a_model_of_another_layout_is_refused_with_the_mend() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    with pytest.raises(UnsupportedModel, match=r"GPT2LMHeadModel .* use a Llama, Qwen2, Qwen3 or Mistral model"):
        Backbone(model)


@torch.no_grad()
def test_a_folder_is_loaded_in_the_type_that_serves(tmp_path: Path) -> None:
    model = causal_lm(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    backbone = Backbone.load(tmp_path)
    assert backbone.dtype is torch.bfloat16
    exact = Backbone.load(tmp_path, torch.float32)
    torch.testing.assert_close(_logits(exact, _ids()), model(input_ids=_ids()).logits, rtol=1e-5, atol=1e-5)
    state = exact.merged_state({})
    assert "lm_head.weight" not in state, "a tied checkpoint names its embedding once"
