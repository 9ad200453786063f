"""The supervised stage: what is scored, how batches are made, that it learns, and that it repeats itself exactly."""

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.supervised import (
    Step,
    SupervisedConfig,
    TokenisedDialogue,
    collate,
    plan_batches,
    rate_at,
    reply_loss,
    train_supervised,
)


def _model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip


def _echoes(count: int, seed: int = 0) -> list[TokenisedDialogue]:
    """Prompt a b, reply b a, end."""
    rng = random.Random(seed)
    made: list[TokenisedDialogue] = []
    for _ in range(count):
        a, b = rng.randrange(5, 30), rng.randrange(5, 30)
        prompt = [2] * rng.randrange(3) + [3, a, b, 4]
        made.append(([*prompt, b, a, 1], [False] * len(prompt) + [True] * 3))
    return made


def test_loss_is_the_mean_over_the_replies_tokens_only() -> None:
    model = _model().eval()
    dialogues = _echoes(5)
    ids_BT, scored_BT = collate(dialogues, pad_id=0)
    losses = []
    for ids, mask in dialogues:  # one at a time, by the definition, without padding
        logits_TV = model(input_ids=torch.tensor([list(ids)])).logits[0]
        losses += [
            F.cross_entropy(logits_TV[t - 1], torch.tensor(ids[t])) for t in range(1, len(ids)) if mask[t]
        ]  # fmt: skip
    assert torch.allclose(reply_loss(model, ids_BT, scored_BT), torch.stack(losses).mean(), atol=1e-5)


def test_prompt_tokens_and_padding_do_not_change_the_gradient() -> None:
    """A prompt token that no reply can see, in the padding, must leave the gradient as it is."""
    gradients = []
    for pad in (0, 31):
        model = _model()
        reply_loss(model, *collate(_echoes(4), pad_id=pad)).backward()
        gradients.append(model.lm_head.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80), st.integers(90, 400), st.integers(0, 9))
@settings(deadline=None)
def test_batches_hold_every_dialogue_once_and_keep_to_their_size(lengths: list[int], limit: int, seed: int) -> None:
    batches = plan_batches(lengths, limit, random.Random(seed))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[index] for index in batch) <= limit for batch in batches)


def test_rate_warms_up_and_comes_down_to_its_floor() -> None:
    config = SupervisedConfig(learning_rate=1.0e-2, warmup_steps=10, minimum_rate_share=0.1)
    rates = [rate_at(step, 200, config) for step in range(200)]
    assert rates[:11] == sorted(rates[:11])
    assert max(rates) == pytest.approx(1.0e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1.0e-3, rel=0.02)


def test_it_learns_to_echo_and_says_how_it_goes() -> None:
    model, steps = _model(), list[Step]()
    config = SupervisedConfig(learning_rate=5e-3, batch_tokens=512, epochs=8, warmup_steps=20)
    summary = train_supervised(model, _echoes(1500), config, steps.append)
    assert summary.first_loss > 2.5
    assert summary.final_loss < 0.25
    assert [step.index for step in steps] == list(range(1, summary.steps + 1))
    assert steps[-1].seconds_left == 0
    assert summary.reply_tokens == 8 * 1500 * 3
    out = model.generate(torch.tensor([[3, 7, 21, 4]]), do_sample=False, max_new_tokens=3, pad_token_id=0)
    assert out[0, 4:].tolist() == [21, 7, 1]


def test_muon_moves_matrices_orthogonally_and_learns() -> None:
    """Its update of a matrix has singular values of like size; AdamW's has not. It learns by heart, too."""
    spread = {}
    for optimiser in ("adamw", "muon"):
        model = _model()
        weight = model.model.layers[0].self_attn.q_proj.weight
        before = weight.detach().clone()
        config = SupervisedConfig(optimiser=optimiser, learning_rate=1e-2, weight_decay=0, bfloat16=False)
        train_supervised(model, _echoes(20), config)
        singular = torch.linalg.svdvals(weight.detach() - before)
        spread[optimiser] = float(singular[0] / singular[len(singular) // 2])
    assert spread["muon"] < 2 < spread["adamw"], spread
    model = _model()
    config = SupervisedConfig(optimiser="muon", learning_rate=5e-3, batch_tokens=64, epochs=120)
    assert train_supervised(model, _echoes(8), config).final_loss < 0.05


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = _model()
        train_supervised(model, _echoes(100), SupervisedConfig(seed=seed, batch_tokens=128))
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_frozen_parameters_stay() -> None:
    model = _model()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    moved = model.model.layers[0].mlp.up_proj.weight.clone()
    train_supervised(model, _echoes(50), SupervisedConfig(batch_tokens=128))
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, moved)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="no dialogues"):
        train_supervised(_model(), [], SupervisedConfig())
    with pytest.raises(ValueError, match="dialogue 1 has no assistant token"):
        train_supervised(_model(), [*_echoes(1), ([3, 4], [False, False])], SupervisedConfig())
    model = _model().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        train_supervised(model, _echoes(2), SupervisedConfig())
    with pytest.raises(ValidationError, match="learning_rate"):
        SupervisedConfig(learning_rate=0)
