"""What moves the reward model: contributions add up, and effects are found where they were put."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trainer.models import END, make_backbone, make_tokenizer
from trainer.attribution import Piece, contributions, pieces, reason_effects, surface_effects
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.config import LoraConfig, RewardModelConfig
from trainer.examples import PairExample, ThumbExample
from trainer.likelihood import LEFT
from trainer.reward_model import RewardModel, fit
from trainer.sampler import Rollout
from trainer.tokens import decode, encode_reply

pytestmark = pytest.mark.usefixtures("one_thread")
MEMBERS = RewardModelConfig(
    members=2, adapted_share=0.7, epochs=3, learning_rate=1e-2, lora=LoraConfig(rank=4, alpha=8)
)
FAVOURITE = 20


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.set_num_threads(1)
    return make_backbone(num_hidden_layers=3)


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> RewardModel:
    """Of people who like the favourite token."""
    generator = torch.Generator().manual_seed(0)

    def reply(favourite: bool) -> list[int]:
        ids = torch.randint(21, 48, (6,), generator=generator).tolist()
        ids[int(torch.randint(6, (1,), generator=generator))] = FAVOURITE if favourite else 21
        return [*ids, END]

    votes = [PairExample([5 + n % 20, 6], reply(True), reply(False), LEFT, 0, 1.0, n) for n in range(100)]
    return fit(backbone, votes, MEMBERS, 0)[0]


def test_contributions_add_up_to_the_score_and_name_the_token_that_matters(model: RewardModel) -> None:
    rollouts = [
        Rollout([7, 6], [30, 31, FAVOURITE, 32, END], [0.0] * 5, True),
        Rollout([7, 6], [40, END], [0.0] * 2, True),
        Rollout([9, 6], [33, FAVOURITE, 34, 35, 36, END], [0.0] * 6, True),
    ]
    found = contributions(model, rollouts)
    prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
    scores = model.score(prompts, replies).mean(0)
    batch = Batch.of(prompts, replies)
    with torch.no_grad():
        silence = model.running_scores(model.shared(batch), batch).mean(0)[:, 0]
    for row, gains in enumerate(found):
        assert len(gains) == len(rollouts[row].reply)
        assert sum(gains) == pytest.approx((scores[row] - silence[row]).item(), abs=1e-4)
    for row in (0, 2):  # with another token in its place, the score gains as much before, and less from there on
        reply = rollouts[row].reply
        at = reply.index(FAVOURITE)
        without = [21 if token == FAVOURITE else token for token in reply]
        (other,) = contributions(model, [Rollout(prompts[row], without, [0.0] * len(reply), True)])
        assert found[row][:at] == pytest.approx(other[:at], abs=1e-4)
        assert sum(found[row][at:]) > sum(other[at:]) + 0.2


def test_pieces_are_the_text_even_where_a_character_has_several_tokens() -> None:
    tokenizer = make_tokenizer()
    ids = encode_reply(tokenizer, "thank 你们 ☃!")
    found = pieces(ids, [1.0] * len(ids), lambda part: decode(tokenizer, part))
    assert "".join(piece.text for piece in found) == "thank 你们 ☃!"
    assert not any("\ufffd" in piece.text for piece in found)
    assert sum(piece.gain for piece in found) == len(ids)
    assert len(found) < len(ids)
    assert pieces([], [], lambda part: "") == []
    assert found[-1] == Piece("", 1.0), "the end has a gain of its own, and no text"


def test_surface_effects_are_found_one_beside_the_other() -> None:
    rng = np.random.default_rng(0)
    texts, tokens, scores = [], [], []
    for _ in range(400):
        exclaims, chinese, length = rng.random() < 0.5, rng.random() < 0.3, int(rng.integers(4, 40))
        texts.append(("你好" if chinese else "hello there") + ("!" if exclaims else "."))
        tokens.append(length)
        scores.append(0.8 * exclaims - 0.3 * np.log2(length) + rng.normal(0, 0.5))
    found = {each.name: each for each in surface_effects(np.array(scores), texts, tokens)}
    assert set(found) == {"twice as long", "in Chinese", "exclaims"}, "what no reply has is left out"
    assert found["exclaims"].effect == pytest.approx(0.8, abs=0.15)
    assert found["twice as long"].effect == pytest.approx(-0.3, abs=0.1)
    assert found["in Chinese"].lower < 0 < found["in Chinese"].upper
    for each in found.values():
        assert each.lower < each.effect < each.upper
    assert surface_effects(np.zeros(3), ["a", "a", "a"], [1, 1, 1]) == []


def test_a_reason_is_where_its_replies_are(model: RewardModel) -> None:
    def thumb(number: int) -> ThumbExample:
        good = number % 2 == 0
        reply = [30 + number % 7, FAVOURITE if good else 21, 40, END]
        reasons = ["friendly"] if good else ["cold"]
        return ThumbExample([7, 6], reply, float(good), 0, 1.0, number, [*reasons, *(["rare"] if number < 2 else [])])

    effects = reason_effects(model, [thumb(number) for number in range(40)])
    assert [each.name for each in effects] == ["friendly", "cold"], "too few to say anything of the third"
    assert effects[0].lower > 0 > effects[1].upper
    assert [each.replies for each in effects] == [20, 20]
    assert reason_effects(model, []) == []
