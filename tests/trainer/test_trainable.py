"""All weights as one trainable set: complete, exact, and with the gradients that transformers' own forward has."""

import pytest
import torch
from torch.nn import functional as F

from tests.trainer.models import FAMILIES, all_logits, causal_lm, make_backbone, read_whole
from trainer.backbone import Backbone
from trainer.trainable import FullWeights

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = [[5, 6, 7, 8, 9], [3, 4, 5]]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_every_weight_are_transformers_own(family: str, tied: bool) -> None:
    model = causal_lm(family, tie_word_embeddings=tied)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = sum(model(input_ids=torch.tensor([row])).logits.square().sum() for row in ROWS)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    backbone = Backbone(model)
    full = FullWeights(backbone)
    assert len(full.weights) == len(expected), "every weight learns"
    with full.merged_once() as [weights]:
        for row in ROWS:  # two passes, whose gradients must add up
            batch = read_whole([row])
            hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
            logits = F.linear(backbone.normed(hidden, weights), backbone.head(weights))
            logits.square().sum().backward()
    for key, parameter in full.weights.items():
        name = key.replace("/", ".")
        name = name if name == "lm_head.weight" else f"model.{name}"
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3, msg=name)
    assert all(torch.equal(expected[name], parameter) for name, parameter in model.named_parameters())


@torch.no_grad()
def test_it_starts_where_it_is_told_and_a_checkpoint_of_it_says_the_same() -> None:
    backbone, other = make_backbone(seed=0), make_backbone(seed=3)
    torch.testing.assert_close(all_logits(backbone, ROWS, FullWeights(backbone).merged()), all_logits(backbone, ROWS))
    start = other.weights()
    moved = FullWeights(backbone, start).merged()
    torch.testing.assert_close(all_logits(backbone, ROWS, moved), all_logits(other, ROWS))
    loaded = causal_lm(seed=9)
    loaded.load_state_dict(backbone.merged_state(moved), strict=True)
    torch.testing.assert_close(all_logits(Backbone(loaded), ROWS), all_logits(other, ROWS))


def test_it_learns_in_fp32_and_runs_in_the_backbones_type() -> None:
    backbone = make_backbone()
    backbone.model.to(torch.bfloat16)
    full = FullWeights(backbone)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    assert {weight.dtype for weight in full.merged().values()} == {torch.bfloat16}
