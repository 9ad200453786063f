"""The composed reward: each term by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.trainer.models import make_tokenizer
from trainer.config import BUILT_IN_TERMS, ClassifierTerm, RewardConfig
from trainer.errors import UnsupportedModel
from trainer.reward import Composer, Facts, Reward, repetition
from trainer.rules import Rules

SCORES = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])  # two members, three replies
REPLIES = [[5, 6, 7, 1], [5, 6, 7, 5, 6, 7, 1], [9, 1]]
TEXTS = ["a fine answer", "never SAY Fish and chips", "short"]
FLUENCY = torch.tensor([-1.0, -2.0, -0.5])


def _composed(config: RewardConfig, **changes: Any) -> Reward:
    facts = {"scores_MB": SCORES, "replies": REPLIES, "texts": TEXTS, "ended": [True] * 3, "fluency_B": FLUENCY}
    return Composer(config).compose(Facts(**facts | changes))


def test_terms_sum_to_the_total() -> None:
    config = RewardConfig(
        uncertainty=0.5,
        bound=4.0,
        length_weight=-0.1,
        repetition_weight=2.0,
        coherence_weight=0.2,
        consistency_weight=0.5,
        rules=Rules(words=("fish", "chips", "fin"), penalty=3),
    )
    reward = _composed(config, consistency_B=torch.tensor([1.0, 0.0, -2.0]))
    expected = {
        "votes": [4 * math.tanh(0.5), 0.0, 4 * math.tanh(0.5)],
        "uncertainty": [-0.5, 0.0, 0.0],  # the variance of 1 and 3 is 1
        "length": [-0.4, -0.7, -0.2],
        "repetition": [0.0, -2.0 / 5, 0.0],  # of five 3-grams one repeats
        "rules": [0.0, -6.0, 0.0],
        "coherence": [-0.2, -0.4, -0.1],
        "consistency": [0.5, 0.0, -1.0],
    }
    assert set(reward.terms) == set(expected) == set(BUILT_IN_TERMS)
    for name, values in expected.items():
        assert reward.terms[name].tolist() == pytest.approx(values), name
    torch.testing.assert_close(reward.total_B, torch.stack(list(reward.terms.values())).sum(0))


def test_votes_pay_less_and_less_beyond_what_the_reference_says() -> None:
    def paid(score: float) -> float:
        reward = _composed(RewardConfig(bound=1.5, uncertainty=0), scores_MB=torch.full((2, 3), score))
        return reward.terms["votes"][0].item()

    assert paid(0.2) == pytest.approx(0.2, rel=0.01)
    assert paid(1.0) - paid(0.0) > 4 * (paid(3.0) - paid(2.0)) > 0
    assert paid(50.0) == -paid(-50.0) == pytest.approx(1.5)


def test_terms_without_weight_are_not_shown() -> None:
    assert set(_composed(RewardConfig()).terms) == {"votes", "uncertainty", "repetition", "rules"}


def test_a_reply_that_does_not_end_gets_the_fixed_score_whatever_it_says() -> None:
    reward = _composed(RewardConfig(missing_end=-1.0), ended=[False, True, False])
    assert reward.total_B[0] == reward.total_B[2] == -1.0
    assert reward.total_B[1] != -1.0


def test_doubt_costs_even_where_the_mean_is_the_same() -> None:
    scores = torch.tensor([[1.0, -1.0, 1.0], [1.0, 3.0, 1.0]])
    reward = _composed(RewardConfig(uncertainty=0.5), scores_MB=scores)
    assert reward.total_B[0] > reward.total_B[1]


@pytest.mark.parametrize(
    ("ids", "share"), [([], 0.0), ([1, 2], 0.0), ([1, 2, 3, 4], 0.0), ([7] * 10, 7 / 8), ([1, 2, 3, 1, 2, 3], 0.25)]
)
def test_repetition_is_the_share_of_grams_seen_before(ids: list[int], share: float) -> None:
    assert repetition(ids) == pytest.approx(share)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one: what it says means nothing, but it says it as any other does."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, id2label={0: "sour", 1: "sweet"}, label2id={"sour": 0, "sweet": 1}, initializer_range=0.5,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("names", [["votes"], ["repetition"], ["sentiment", "sentiment"]])
def test_no_two_terms_have_the_same_name(names: list[str]) -> None:
    """The last one would take the place of the other."""
    terms = [{"name": name, "model": "a", "label": "b", "weight": 1.0} for name in names]
    with pytest.raises(ValueError, match=f"another term of the reward is called '{names[0]}'"):
        RewardConfig.model_validate({"classifiers": terms})


def test_a_classifier_is_a_term_of_its_own(classifier: Path) -> None:
    def of(label: str) -> torch.Tensor:
        term = ClassifierTerm(name="sentiment", model=str(classifier), label=label, weight=2.0)
        return _composed(RewardConfig(classifiers=(term,))).terms["sentiment"]

    sweet, sour = of("sweet"), of("sour")
    torch.testing.assert_close(sweet + sour, torch.full((3,), 2.0))
    assert sweet.std() > 1e-3, "it tells texts apart"
    with pytest.raises(UnsupportedModel, match=r"knows the labels sour, sweet, and not 'bitter': change the label"):
        of("bitter")


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("We guarantee it!", ["word guarantee"]),
        ("guaranteed", []),
        ("GUARANTEE.", ["word guarantee"]),
        ("our money  back", []),
        ("Money back, always", ["word money back"]),
        ("这是保证的", ["word 保证"]),
        ("call 555-1234 now", [r"pattern \\b\\d{3}-\\d{4}\\b"]),
        ("vote in the election; the senate", ["topic politics"]),
        ("nothing", []),
    ],
)
def test_rules_name_what_is_broken(text: str, broken: list[str]) -> None:
    rules = Rules(
        words=("guarantee", "money back", "保证"),
        patterns=(r"\b\d{3}-\d{4}\b",),
        topics={"politics": ("election", "senate", "选举")},
    )
    assert rules.broken(text) == [name.replace("\\\\", "\\") for name in broken]


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"words": [" "]}, "blank"),
        ({"patterns": ["("]}, "is no regular expression"),
        ({"patterns": ["x*"]}, "matches an empty text"),
        ({"topics": {"politics": []}}, "topic 'politics' needs words"),
        ({"banned": ["x"]}, "Extra inputs"),
    ],
)
def test_rules_that_would_hit_everything_or_nothing_are_refused(rules: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rules.model_validate(rules)
