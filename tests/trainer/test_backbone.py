"""The backbone, layer by layer, is transformers' own forward; packing and sharing change nothing; other families are
refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import trainer.device
from tests.trainer.models import FAMILIES, VOCAB, all_logits, causal_lm, make_backbone, read_whole
from trainer.backbone import ADAPTED, Backbone, Trace
from trainer.batches import Batch
from trainer.config import LoraConfig
from trainer.errors import UnsupportedModel
from trainer.logprobs import reply_logprobs, reply_logprobs_and_entropy, score_logprobs
from trainer.lora import LoraAdapter

pytestmark = pytest.mark.usefixtures("one_thread")


LENGTHS = (11, 4, 7)


def _rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def _logits(backbone: Backbone, *cuts: int) -> Tensor:
    batch = read_whole(_rows())
    hidden = backbone.embed(batch)
    for start, stop in pairwise([0, *cuts, backbone.depth]):
        hidden = backbone.run(hidden, batch, start, stop)
    return F.linear(backbone.normed(hidden), backbone.head())


def _by_transformers(model: Any) -> Tensor:
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in _rows()])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_run_one_by_one_give_what_transformers_gives(family: str, tied: bool) -> None:
    model = causal_lm(family, tie_word_embeddings=tied)
    expected = _by_transformers(model)
    backbone = Backbone(model)
    assert expected.std() > 0.1, "the model must have something to say"
    torch.testing.assert_close(_logits(backbone), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_logits(backbone, 1, 2), expected, rtol=1e-5, atol=1e-5)


def _changed(backbone: Backbone, first: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: backbone.weight(name) + 0.05 * torch.randn(backbone.weight(name).shape, generator=generator)
        for layer in range(first, backbone.depth)
        for name in [f"layers.{layer}.{linear}.weight" for linear in ADAPTED]
    }


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_weights_take_the_place_of_the_frozen_ones_and_leave_no_trace(family: str) -> None:
    model = causal_lm(family)
    backbone = Backbone(model)
    before = _logits(backbone)
    changed = _changed(backbone)
    found = all_logits(backbone, _rows(), changed)
    assert torch.equal(_logits(backbone), before)
    # What a checkpoint of the merged weights says in transformers itself.
    other = causal_lm(family, seed=9)
    other.load_state_dict(backbone.merged_state(changed), strict=True)
    torch.testing.assert_close(found, _by_transformers(other), rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


PROMPTS = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [8], [9, 10], [5, 6, 7]]
REPLIES = [[11, 12], [13, 14, 15, 16, 17, 1], [1], [1], [2, 3, 4], [11, 12]]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_weights_that_act_on_replies_see_their_prompts_through_the_frozen_models_cache(family: str, first: int) -> None:
    """As transformers does it: the frozen model fills a key-value cache, and another one goes on from there."""
    model, other = causal_lm(family), causal_lm(family, seed=9)
    backbone = Backbone(model)
    changed = _changed(backbone, first)
    other.load_state_dict(backbone.merged_state(changed), strict=True)
    batch, trace = Batch.of(PROMPTS, REPLIES), Trace(first, {first})
    frozen = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, trace=trace)
    torch.testing.assert_close(backbone.run_reads(trace, {}), frozen, rtol=1e-5, atol=1e-5)
    found = F.linear(backbone.normed(backbone.run_reads(trace, changed)), backbone.head())
    assert (found - F.linear(backbone.normed(frozen), backbone.head())).abs().max() > 1e-2
    for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        *seen, last = prompt
        cache = model(input_ids=torch.tensor([seen]), use_cache=True).past_key_values if seen else None
        expected = other(input_ids=torch.tensor([[last, *reply]]), past_key_values=cache).logits[0]
        torch.testing.assert_close(found[batch.predicting_BR[row, 0]], expected[0], rtol=1e-4, atol=1e-4)
        own = found[batch.token_BR[row, : len(reply)]]
        torch.testing.assert_close(own, expected[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_logprob_is_what_it_would_be_alone_whoever_shares_the_prompt(family: str, shared: bool) -> None:
    model = causal_lm(family)
    backbone = Backbone(model)
    batch = Batch.of(PROMPTS, REPLIES, shared=shared)
    assert batch.prompts == (4 if shared else 6)
    hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth)
    found = reply_logprobs(backbone, hidden, batch, temperature=0.7)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].double() / 0.7
        table = torch.log_softmax(logits, -1)
        expected = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(reply)]
        assert found[row, : len(reply)].tolist() == pytest.approx(expected, abs=1e-5)
        assert not found[row, len(reply) :].any()


@torch.no_grad()
def test_logprobs_in_several_passes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    whole = score_logprobs(backbone, PROMPTS, REPLIES, 0.7)
    monkeypatch.setattr(trainer.device, "CPU", trainer.device.CPU._replace(scoring_tokens=8))
    torch.testing.assert_close(score_logprobs(backbone, PROMPTS, REPLIES, 0.7), whole)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logprobs_piece_by_piece_have_the_gradients_of_a_whole_table(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the head, which a full fine-tuning trains."""
    monkeypatch.setattr(trainer.device, "CPU", trainer.device.CPU._replace(table_numbers=1))
    backbone = Backbone(causal_lm(tie_word_embeddings=tied))
    batch = Batch.of(*[[row for row in rows for _ in range(12)] for rows in (PROMPTS, REPLIES)])
    mask = batch.reply_mask_BR
    assert mask.sum() > 128, "several pieces"
    gradients = []
    for whole in (True, False):
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in backbone.weights().items()}
        hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
        if whole:
            states = backbone.normed(hidden[batch.predicting_BR[mask]], weights)
            table = torch.log_softmax(F.linear(states, backbone.head(weights)) / 0.7, -1)
            logprobs = table.gather(1, batch.reply_ids_BR[mask][:, None]).squeeze(1)
        else:
            logprobs = reply_logprobs(backbone, hidden, batch, 0.7, weights)[mask]
        (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: weight.grad for name, weight in weights.items()})
    for name, expected in gradients[0].items():
        assert expected is not None
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_sharing_a_prompt_changes_no_gradient() -> None:
    gradients = []
    for shared in (True, False):
        backbone = make_backbone()
        adapter = LoraAdapter(backbone, LoraConfig(rank=2, alpha=4.0), seed=0)
        with torch.no_grad():
            for parameter in adapter.b.values():
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        batch = Batch.of(PROMPTS, REPLIES, shared=shared)
        hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, adapter.merged())
        weights = torch.arange(1.0, 7.0)[:, None]
        (reply_logprobs(backbone, hidden, batch, 0.7) * weights).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert expected is not None
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    backbone = make_backbone()
    batch = Batch.of([[5, 6]], [[7, 8, 1]])
    hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth)
    logprobs, entropy = reply_logprobs_and_entropy(backbone, hidden, batch, temperature=1.3)
    torch.testing.assert_close(logprobs, reply_logprobs(backbone, hidden, batch, temperature=1.3))
    table = torch.log_softmax(all_logits(backbone, [[5, 6, 7, 8, 1]])[1:4].double() / 1.3, -1)
    torch.testing.assert_close(entropy[0].double(), -(table.exp() * table).sum(-1), rtol=1e-5, atol=1e-5)


def test_the_backbone_is_frozen() -> None:
    backbone = make_backbone()
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training


def test_a_model_of_another_family_is_refused_with_the_mend() -> None:
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
    torch.testing.assert_close(_logits(exact), _by_transformers(model), rtol=1e-5, atol=1e-5)
    state = exact.merged_state({})
    assert "lm_head.weight" not in state, "a tied checkpoint names its embedding once"
