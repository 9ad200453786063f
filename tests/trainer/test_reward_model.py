"""The reward model learns what synthetic people like from their votes alone, and says how sure one may be of it."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.models import END, VOCAB, make_backbone
from trainer.assessment import assess
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.config import LoraConfig, PpoConfig, RewardModelConfig
from trainer.critic import Critic, make_critic
from trainer.errors import OtherRewardModel
from trainer.examples import PairExample, ThumbExample, VoteExample
from trainer.likelihood import BOTH_BAD, LEFT, RIGHT, VoteModel
from trainer.reward_model import FitEpoch, FitStep, Member, RewardModel, bucketed, fit, held_out_nll

pytestmark = pytest.mark.usefixtures("one_thread")
LIKED = 7  # the token that people like to see in a reply
CONFIG = RewardModelConfig(
    members=2,
    adapted_share=1.0,
    epochs=4,
    batch_size=32,
    learning_rate=1e-2,
    unrelated_share=0.0,  # no reply here has to do with its prompt
    lora=LoraConfig(rank=4, alpha=8.0),
)


def _reply(rng: random.Random, liked: bool) -> list[int]:
    ids = [rng.randrange(10, VOCAB) for _ in range(rng.randint(2, 6))]
    if liked:
        ids[rng.randrange(len(ids))] = LIKED
    return [*ids, END]


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(10, VOCAB) for _ in range(rng.randint(2, 4))]


def _pairs(count: int, seed: int, noise: float = 0.05) -> list[VoteExample]:
    rng = random.Random(seed)
    found: list[VoteExample] = []
    for number in range(count):
        left_is_liked = rng.random() < 0.5
        outcome = LEFT if left_is_liked != (rng.random() < noise) else RIGHT
        left, right = _reply(rng, left_is_liked), _reply(rng, not left_is_liked)
        found.append(PairExample(_prompt(rng), left, right, outcome, number % 5, 1.0, number))
    return found


def _thumbs(count: int, seed: int, user: int | None = None) -> list[VoteExample]:
    rng = random.Random(seed)
    found: list[VoteExample] = []
    for number in range(count):
        liked = rng.random() < 0.5
        up = float(liked != (rng.random() < 0.05))
        found.append(
            ThumbExample(_prompt(rng), _reply(rng, liked), up, number % 5 if user is None else user, 1.0, number)
        )
    return found


def _replies(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(seed)
    return [_prompt(rng) for _ in range(count)], [_reply(rng, rng.random() < 0.5) for _ in range(count)]


@torch.no_grad()
def surprise_columns(backbone: Backbone, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """(R, 2), by transformers' own forward pass over the one sequence."""
    logits = backbone.model(torch.tensor([prompt + reply])).logits[0].float()
    table = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    logprobs = 4.0 * torch.stack([row[token].clamp(min=-12.0) for row, token in zip(table, reply, strict=True)])
    return torch.stack([logprobs, torch.stack([logprobs[: t + 1].min() for t in range(len(reply))])], 1)


@pytest.fixture(scope="module")
def shared_backbone() -> Backbone:
    return make_backbone(num_hidden_layers=2)


@pytest.fixture(scope="module")
def fitted(shared_backbone: Backbone) -> tuple[RewardModel, list[VoteModel], list[FitStep]]:
    torch.set_num_threads(1)
    steps: list[FitStep] = []
    model, votes = fit(shared_backbone, _pairs(320, seed=1), CONFIG, 0, steps.append)
    return model, votes, steps


Fitted = tuple[RewardModel, list[VoteModel], list[FitStep]]


def test_pairs_teach_it_what_people_like(fitted: Fitted) -> None:
    model, votes, steps = fitted
    found = assess(model, votes, _pairs(300, seed=2, noise=0.0))
    assert found.measured_on == "decided pairs"
    assert found.pairs == 300
    assert found.accuracy > 0.9
    assert found.lower < found.accuracy <= found.upper
    assert found.upper - found.lower < 0.08
    assert len(steps) == math.ceil(320 / 32) * 4
    assert np.mean([step.loss for step in steps[-5:]]) < 0.7 * np.mean([step.loss for step in steps[:3]])


def test_every_member_has_learned_and_none_is_the_copy_of_another(fitted: Fitted) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(200, seed=3)
    scores = model.score(prompts, replies)
    liked = torch.tensor([LIKED in reply for reply in replies])
    for member in scores:
        assert member[liked].mean() > member[~liked].mean() + 1.0
    correlation = float(torch.corrcoef(scores)[0, 1])
    assert 0.5 < correlation < 0.9999


def test_its_probabilities_are_calibrated(fitted: Fitted) -> None:
    model, votes, _ = fitted
    found = assess(model, votes, _pairs(400, seed=4))
    assert found.calibration_error is not None
    assert found.calibration_error < 0.12
    assert sum(count for _, _, count in found.reliability) == 400
    assert all(0 <= predicted <= 1 and 0 <= observed <= 1 for predicted, observed, _ in found.reliability)


def test_calibration_does_not_depend_on_the_units_that_scores_are_told_in(fitted: Fitted) -> None:
    model, votes, _ = fitted
    held_out = _pairs(300, seed=5)
    before = assess(model, votes, held_out)
    model.standardise(*_replies(100))
    after = assess(model, votes, held_out)
    assert after.accuracy == pytest.approx(before.accuracy, abs=0.02)
    assert after.calibration_error == pytest.approx(before.calibration_error, abs=1e-4)


def test_contrary_labels_show_as_bad_calibration(fitted: Fitted) -> None:
    model, votes, _ = fitted
    held_out = _pairs(200, seed=6, noise=1.0)
    found = assess(model, votes, held_out)
    assert found.accuracy < 0.1
    assert found.calibration_error is not None
    assert found.calibration_error > 0.5


def test_thumbs_alone_teach_it_as_well(shared_backbone: Backbone) -> None:
    model, votes = fit(shared_backbone, _thumbs(320, seed=7), CONFIG, seed=1)
    found = assess(model, votes, _thumbs(200, seed=8, user=-1))
    assert found.measured_on == "thumbs, by concordance"
    assert found.concordance is not None
    assert found.concordance > 0.9
    assert found.accuracy == found.concordance
    assert 0.5 < found.lower <= found.accuracy <= found.upper <= 1.0
    assert found.pairs == 0
    assert found.calibration_error is None


def test_both_bad_is_a_verdict_on_each_reply_and_a_vote_without_weight_says_nothing(shared_backbone: Backbone) -> None:
    """The unliked replies are only ever seen in pairs of two bad ones: a plain tie would teach nothing of them."""
    rng = random.Random(9)
    examples: list[VoteExample] = []
    for number in range(220):
        left, right = _reply(rng, False), _reply(rng, False)
        examples.append(PairExample(_prompt(rng), left, right, BOTH_BAD, 0, 1.0, number))
        examples.append(ThumbExample(_prompt(rng), _reply(rng, True), 1.0, 0, 1.0, number))
        if number % 3 == 0:
            examples.append(PairExample(_prompt(rng), _reply(rng, False), _reply(rng, True), LEFT, 0, 0.0, number))
    model, votes = fit(shared_backbone, examples, CONFIG, seed=2)
    assert assess(model, votes, _thumbs(200, seed=10, user=-1)).accuracy > 0.85
    assert assess(model, votes, _pairs(200, seed=10)).accuracy > 0.85


def test_the_same_seed_gives_the_same_model_bit_for_bit(shared_backbone: Backbone) -> None:
    examples = [*_pairs(40, seed=11), *_thumbs(24, seed=12)]
    config = CONFIG.model_copy(update={"epochs": 1})
    first, again, other = (fit(shared_backbone, examples, config, seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_heads_start_with_a_deviation_of_one_over_the_root_of_inputs_plus_one(shared_backbone: Backbone) -> None:
    inputs = 2 * shared_backbone.hidden_size
    heads = torch.stack([Member(shared_backbone, CONFIG, 2, seed).head for seed in range(0, 400, 2)])
    drawn, sums = heads[:, :inputs], heads[:, inputs:]
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(inputs + 1), rel=0.05)
    assert abs(drawn.mean().item()) < 0.01
    assert not sums.any()


def test_standardised_scores_have_mean_zero_and_deviation_one_member_by_member(fitted: Fitted) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(150, seed=13)
    model.standardise(prompts, replies)
    scores = model.score(prompts, replies)
    torch.testing.assert_close(scores.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std(1), torch.ones(2), atol=1e-4, rtol=0)
    model.standardise(prompts, replies)
    torch.testing.assert_close(model.score(prompts, replies), scores)


def test_a_score_is_read_at_the_last_real_token_and_padding_does_not_touch_it(fitted: Fitted) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(40, seed=14)
    together = model.score(prompts, replies)
    alone = torch.cat([model.score([p], [r]) for p, r in zip(prompts, replies, strict=True)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    member: Member = model.members[0]  # type: ignore[assignment]
    here, mean, total = member.head.split(model.backbone.hidden_size)  # type: ignore[no-untyped-call]
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        batch = Batch.of([prompt], [reply])
        states = member.states(model.backbone, model.shared(batch))[1:]  # the first is the prompt's end
        columns = surprise_columns(model.backbone, prompt, reply)
        here_too, mean_too = member.surprise_head.chunk(2)
        raw = states[-1] @ here + states.mean(0) @ mean + states.sum(0) @ total / 16
        raw = raw + columns[-1] @ here_too + columns.mean(0) @ mean_too
        expected = raw * model.gain_M[0] + model.shift_M[0]
        assert together[0, row].item() == pytest.approx(expected.item(), abs=1e-3)


def test_saved_and_loaded_scores_are_identical(fitted: Fitted, shared_backbone: Backbone, tmp_path: Path) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(50, seed=15)
    model.standardise(prompts, replies)
    model.save(tmp_path / "reward_model")
    loaded = RewardModel.load(tmp_path / "reward_model", shared_backbone)
    assert loaded.config == CONFIG
    assert torch.equal(loaded.score(prompts, replies), model.score(prompts, replies))
    assert {path.suffix for path in (tmp_path / "reward_model").iterdir()} == {".safetensors", ".json"}


def test_one_that_an_older_kudos_fitted_is_refused(fitted: Fitted, shared_backbone: Backbone, tmp_path: Path) -> None:
    model, _, _ = fitted
    folder = tmp_path / "run_1" / "reward_model"
    model.save(folder)
    file = folder / "reward_model.safetensors"
    inputs = 2 * shared_backbone.hidden_size
    older = {name: each[:inputs].clone() if name.endswith(".head") else each for name, each in load_file(file).items()}
    save_file(older, file)
    with pytest.raises(OtherRewardModel, match=r"run_1 was fitted by an older kudos.*start another run"):
        RewardModel.load(folder, shared_backbone)


def test_what_all_members_read_is_the_frozen_models_and_causal(fitted: Fitted) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(40, seed=17)
    batch = Batch.of(prompts, replies)
    columns_CF = model.shared(batch).surprise_CF
    assert not columns_CF[batch.predicting_BR[:, 0]].any(), "of the prompt, nothing is read"
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        found = columns_CF[batch.token_BR[row, : len(reply)]]
        torch.testing.assert_close(found, surprise_columns(model.backbone, prompt, reply), rtol=1e-4, atol=1e-3)
        half = Batch.of([prompt], [[*reply[: len(reply) // 2], 9, 9, 9]])
        torch.testing.assert_close(
            model.shared(half).surprise_CF[half.token_BR[0]][: len(reply) // 2], found[: len(reply) // 2]
        )


CRITICS = {"adapter": {"critic": "adapter"}, "head": {"critic": "head"}, "full": {"method": "full"}}


def critic_settings(kind: str) -> PpoConfig:
    return PpoConfig.model_validate({"learning_rate": 1e-5, "critic_learning_rate": 1e-5} | CRITICS[kind])


@pytest.fixture(params=CRITICS)
def critic_config(request: pytest.FixtureRequest) -> PpoConfig:
    return critic_settings(request.param)


def values_of(critic: Critic, model: RewardModel, batch: Batch) -> torch.Tensor:
    shared = model.shared(batch)
    frozen = critic.frozen(shared.trace.inputs[model.first], model.states(shared)[0])
    return critic.values(frozen, shared.surprise_CF, batch, critic.merged())


@torch.no_grad()
def test_the_critic_starts_as_the_reward_models_first_member_in_the_rewards_units(fitted: Fitted) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(30, seed=16)
    model.standardise(prompts, replies)
    critic = make_critic(model, PpoConfig(critic="head"))
    values = values_of(critic, model, Batch.of(prompts, replies))
    assert critic.surprise_head.any()
    # Extended by one token, the value before that token is what the first member thinks of the reply so far.
    extended = Batch.of(prompts, [[*reply, 9] for reply in replies])
    before_it = values_of(critic, model, extended)
    last = before_it.gather(1, (extended.reply_lengths_B - 1)[:, None]).squeeze(1)
    torch.testing.assert_close(last, model.score(prompts, replies)[0], rtol=1e-4, atol=1e-4)
    # And every value is read one position before its token.
    for row in range(5):
        for t in range(1, len(replies[row])):
            seen = Batch.of([prompts[row]], [replies[row][:t]])
            expected = model.scores(model.shared(seen), seen)[0, 0]
            assert values[row, t].item() == pytest.approx(expected.item(), abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_critic_whose_layers_learn_starts_with_that_members_weights_and_reads_prompts_by_them_too(
    fitted: Fitted, kind: str
) -> None:
    model, _, _ = fitted
    prompts, replies = _replies(30, seed=16)
    model.standardise(prompts, replies)
    critic, batch = make_critic(model, critic_settings(kind)), Batch.of(prompts, replies)
    member, backbone = cast(Member, model.members[0]), model.backbone
    hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, member.adapter.merged())
    raw = member.readout(backbone.normed(hidden), model.shared(batch), batch)[:, :-1]
    expected = raw * model.gain_M[0] + model.shift_M[0]
    values = values_of(critic, model, batch)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    heads = values_of(make_critic(model, PpoConfig(critic="head")), model, batch)
    assert (values - heads).abs().max() > 0.01


def test_the_critics_training_leaves_the_reward_model_alone(fitted: Fitted, critic_config: PpoConfig) -> None:
    model, _, _ = fitted
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    critic = make_critic(model, critic_config)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_epochs_batches_hold_every_vote_once_and_lengths_of_a_kind() -> None:
    lengths = torch.tensor([number % 50 for number in range(500)])
    batches = bucketed(lengths, 16, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(500))
    assert max(map(len, batches)) == 16

    def padding(rows: Sequence[torch.Tensor]) -> float:
        return sum(float((lengths[row].max() - lengths[row]).sum()) for row in rows)

    assert padding(batches) < 0.4 * padding(torch.randperm(500).split(16))


def test_it_stops_where_it_predicts_other_peoples_votes_worse_and_keeps_the_epoch_before(
    shared_backbone: Backbone,
) -> None:
    """Labels without sense can be learned by heart and not be predicted: every epoch but the first few is too many."""
    noise, others = _pairs(48, seed=21, noise=0.5), _pairs(200, seed=22, noise=0.5)
    config = CONFIG.model_copy(update={"epochs": 12, "batch_size": 8})
    epochs: list[FitEpoch] = []
    model, votes = fit(shared_backbone, noise, config, 0, held_out=others, on_epoch=epochs.append)
    assert [epoch.epoch for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert len(epochs) < 12
    assert [epoch.kept for epoch in epochs] == [*[True] * (len(epochs) - 1), False]
    best = min(epoch.held_out_nll for epoch in epochs)
    assert held_out_nll(model, votes, others, config) == pytest.approx(best, abs=1e-6)
    assert best < epochs[-1].held_out_nll


def test_where_every_epoch_helps_all_are_used(shared_backbone: Backbone) -> None:
    epochs: list[FitEpoch] = []
    config = CONFIG.model_copy(update={"epochs": 2})
    both = [*_pairs(160, seed=23), *_thumbs(60, seed=24)]
    others = [*_pairs(80, seed=25), *_thumbs(40, seed=26, user=-1)]
    stopped, _ = fit(shared_backbone, both, config, 0, held_out=others, on_epoch=epochs.append)
    assert [epoch.kept for epoch in epochs] == [True, True]
    free, _ = fit(shared_backbone, both, config, 0)
    assert all(torch.equal(value, free.state_dict()[name]) for name, value in stopped.state_dict().items())
