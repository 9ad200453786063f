"""The supervised stage learns what people wrote, and keeps what other people's corrections like best."""

import pytest
import torch

from tests.trainer.models import END, all_logits, make_backbone
from trainer.backbone import Backbone
from trainer.config import LoraConfig, SftConfig
from trainer.examples import Demonstration
from trainer.lora import LoraAdapter
from trainer.sft import cross_entropy, imitate
from trainer.trainable import FullWeights, Trainable

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = SftConfig(epochs=4, batch_size=8, learning_rate=1e-2)
LORA = LoraConfig(rank=4, alpha=8.0)


def _corrections(count: int, reply: list[int], first: int = 5) -> list[Demonstration]:
    return [Demonstration([first + number % 30, 7], [*reply, END], 1.0) for number in range(count)]


@pytest.fixture
def backbone(one_thread: None) -> Backbone:
    return make_backbone(num_hidden_layers=2)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_it_learns_what_people_wrote_and_says_how_it_goes(backbone: Backbone, kind: str) -> None:
    policy: Trainable = FullWeights(backbone) if kind == "full" else LoraAdapter(backbone, LORA, seed=0)
    shown, others = _corrections(24, [11, 12, 13]), _corrections(10, [11, 12, 13], first=6)
    shares: list[float] = []
    epochs = imitate(backbone, policy, shown, others, config=CONFIG, seed=0, on_step=shares.append)
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2, 3, 4]
    assert epochs[-1].seen < 0.4 * epochs[0].seen
    assert epochs[0].held_out is not None
    assert epochs[-1].held_out is not None
    assert epochs[-1].held_out < 0.4 * epochs[0].held_out
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    (kept,) = [epoch for epoch in epochs if epoch.kept]
    assert cross_entropy(backbone, policy, others) == pytest.approx(kept.held_out, abs=1e-5)


def test_where_other_people_write_otherwise_the_start_is_kept(backbone: Backbone) -> None:
    policy = LoraAdapter(backbone, LORA, seed=0)
    others = [Demonstration(prompt, _favourite(backbone, prompt), 1.0) for prompt in ([n, 7] for n in range(5, 15))]
    before = cross_entropy(backbone, policy, others)
    epochs = imitate(backbone, policy, _corrections(24, [11, 12, 13]), others, config=CONFIG, seed=0)
    assert [epoch.kept for epoch in epochs] == [True, False, False, False, False]
    assert epochs[-1].seen < epochs[0].seen, "it did learn"
    assert cross_entropy(backbone, policy, others) == pytest.approx(before, abs=1e-6)


@torch.no_grad()
def _favourite(backbone: Backbone, prompt: list[int]) -> list[int]:
    """What the backbone says by itself."""
    said: list[int] = []
    for _ in range(4):
        said.append(int(all_logits(backbone, [prompt + said])[-1].argmax()))
    return said


def test_with_too_few_held_out_the_last_epoch_is_kept(backbone: Backbone) -> None:
    policy = LoraAdapter(backbone, LORA, seed=0)
    epochs = imitate(backbone, policy, _corrections(24, [11, 12]), _corrections(3, [30]), config=CONFIG, seed=0)
    assert [epoch.kept for epoch in epochs] == [False, False, False, False, True]
    assert all(epoch.held_out is None for epoch in epochs)


def test_a_correction_of_small_weight_teaches_less(backbone: Backbone) -> None:
    loud = _corrections(12, [11, 12])
    quiet = [Demonstration(each.prompt, [20, 21, END], 0.05) for each in loud]
    policy = LoraAdapter(backbone, LORA, seed=0)
    imitate(backbone, policy, [*loud, *quiet], [], config=CONFIG, seed=0)
    assert cross_entropy(backbone, policy, loud) < 0.5 * cross_entropy(backbone, policy, quiet)


def test_only_the_replys_tokens_are_learned(backbone: Backbone) -> None:
    policy = LoraAdapter(backbone, LORA, seed=0)
    shown = [Demonstration([5, 6, 7, 8], [11, END], 1.0)]
    assert cross_entropy(backbone, policy, shown) == pytest.approx(_by_hand(backbone, shown[0]), abs=1e-5)


@torch.no_grad()
def _by_hand(backbone: Backbone, shown: Demonstration) -> float:
    logits = backbone.model(input_ids=torch.tensor([shown.prompt + shown.reply])).logits[0]  # type: ignore[operator]
    table = torch.log_softmax(logits, -1)
    start = len(shown.prompt) - 1
    return -sum(float(table[start + t, token]) for t, token in enumerate(shown.reply)) / len(shown.reply)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(backbone: Backbone) -> None:
    states = []
    for seed in (1, 1, 2):
        policy = LoraAdapter(backbone, LORA, seed=0)
        imitate(backbone, policy, _corrections(24, [11, 12, 13]), [], config=CONFIG, seed=seed)
        states.append(policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_it_leaves_no_gradient_for_what_learns_next(backbone: Backbone) -> None:
    policy = LoraAdapter(backbone, LORA, seed=0)
    imitate(backbone, policy, _corrections(24, [11, 12, 13]), [], config=CONFIG, seed=0)
    assert [parameter for parameter in policy.parameters() if parameter.grad is not None] == []
