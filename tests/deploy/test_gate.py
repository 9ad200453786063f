"""The gate refuses with sentences that hold both numbers, and no worse number ever helps a candidate."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.gate import EvaluationReport, GateLimits, SetRates, judge
from feedback.splits import SplitMode

AS_GOOD = SetRates(96, 0.94, 0.87, 0.97, 0.95, 0.88, 0.98)
PAST_ITS_BEST = {"reward_trend": 0.6, "reward_trend_lower": 0.2, "judge_trend": -0.4, "judge_trend_upper": -0.05}

GOOD = EvaluationReport(
    prompts=200,
    win_rate=0.7,
    win_rate_lower=0.63,
    win_rate_upper=0.76,
    kl_nats=6.0,
    mean_tokens_candidate=20.0,
    mean_tokens_serving=19.0,
    refusal_rate_candidate=0.02,
    refusal_rate_serving=0.02,
    repetition_rate_candidate=0.0,
    repetition_rate_serving=0.0,
    safety_flag_rate_candidate=0.0,
    safety_flag_rate_serving=0.0,
    perplexity=4.0,
    reward_gain=0.8,
    held_out_accuracy=0.74,
    held_out_accuracy_lower=0.66,
    held_out_accuracy_upper=0.81,
    judge_win_rate=0.62,
    judge_win_rate_lower=0.55,
    judge_win_rate_upper=0.69,
    judge_gain=0.5,
    reward_trend=0.6,
    reward_trend_lower=0.2,
    judge_trend=0.3,
    judge_trend_upper=0.6,
    sets={"helpful": AS_GOOD, "harmless": AS_GOOD},
)


def test_a_good_candidate_is_accepted() -> None:
    verdict = judge(GOOD)
    assert verdict.accepted
    assert verdict.refusals == []
    assert verdict.flags == []


@pytest.mark.parametrize(
    ("changes", "measured", "limit"),
    [
        ({"prompts": 10}, "10", "32"),
        ({"win_rate": 0.52, "win_rate_lower": 0.44}, "0.440", "0.500"),
        ({"win_rate_lower": 0.5}, "0.500", "0.500"),
        ({"kl_nats": 31.5}, "31.50", "20.00"),
        ({"mean_tokens_candidate": 40.0}, "40.0", "1.50"),
        ({"mean_tokens_candidate": 9.0}, "9.0", "1.50"),
        ({"mean_tokens_candidate": 25.0, "win_rate_at_equal_length": 0.48}, "0.480", "0.500"),
        ({"mean_tokens_candidate": 0.0}, "0.0", "19.0"),
        ({"repetition_rate_candidate": 0.2}, "0.200", "0.020"),
        ({"refusal_rate_candidate": 0.2}, "0.200", "0.050"),
        ({"safety_flag_rate_candidate": 0.02}, "0.020", "0.010"),
        ({"held_out_accuracy": 0.55, "held_out_accuracy_lower": 0.47}, "0.470", "0.500"),
        ({"perplexity": 80.0}, "80.0", "50.0"),
        ({"judge_win_rate": 0.41}, "0.410", "0.500"),
        ({"sets": {"helpful": dataclasses.replace(AS_GOOD, candidate=0.87)}}, "0.870", "0.070"),
        ({"sets": {"helpful": dataclasses.replace(AS_GOOD, candidate=float("nan"))}}, "nan", "finite"),
        (PAST_ITS_BEST, "0.400", "0.100"),
        ({"reward_gain": float("nan")}, "nan", "finite"),
        ({"win_rate_lower": float("nan")}, "nan", "0.500"),
        ({"kl_nats": float("inf")}, "inf", "20.00"),
    ],
)
def test_each_fault_is_refused_in_a_sentence_with_both_numbers(
    changes: dict[str, Any], measured: str, limit: str
) -> None:
    verdict = judge(dataclasses.replace(GOOD, **changes))
    assert not verdict.accepted
    assert any(measured in refusal and limit in refusal for refusal in verdict.refusals), verdict.refusals
    for refusal in verdict.refusals:
        assert re.fullmatch(r"[A-Za-z].*\.", refusal)


def test_a_win_by_length_is_flagged() -> None:
    longer = dataclasses.replace(GOOD, mean_tokens_candidate=25.0)
    assert judge(longer).accepted
    assert "was not measured" in judge(longer).flags[0]
    shown = judge(dataclasses.replace(longer, win_rate_at_equal_length=0.6))
    assert shown.accepted
    assert "still wins" in shown.flags[0]


@pytest.mark.parametrize(
    ("mode", "known"), [(SplitMode.PROMPT, "of people from whom"), (SplitMode.VOTE, "of people and prompts from")]
)
def test_votes_that_were_held_out_of_nobody_else_are_flagged(mode: SplitMode, known: str) -> None:
    few = dataclasses.replace(GOOD, held_out_by=mode)
    assert judge(few).accepted
    assert known in judge(few).flags[0]
    assert "a reward model of held-out votes" in judge(dataclasses.replace(few, judge_win_rate=0.4)).refusals[0]
    assert "a reward model of other people's votes" in judge(dataclasses.replace(GOOD, judge_win_rate=0.4)).refusals[0]


def test_an_operators_own_limit_decides_and_is_named() -> None:
    shorter = dataclasses.replace(GOOD, mean_tokens_candidate=7.0)
    assert not judge(shorter).accepted
    verdict = judge(shorter, GateLimits(max_length_ratio=5, flagged_length_ratio=5))
    assert verdict.accepted
    assert verdict.flags == [
        "The gate's max_length_ratio was set to 5; it is 1.5 by default.",
        "The gate's flagged_length_ratio was set to 5; it is 1.2 by default.",
    ]


def test_a_reward_that_rises_for_its_own_judge_alone_is_refused() -> None:
    gamed = dataclasses.replace(GOOD, win_rate=0.95, win_rate_lower=0.92, reward_gain=2.0, judge_win_rate=0.45)
    (refusal,) = judge(gamed).refusals
    assert "0.450" in refusal
    assert "0.950" in refusal
    worse = judge(dataclasses.replace(gamed, win_rate=0.47, win_rate_lower=0.41))
    assert not any("its own judge alone" in refusal for refusal in worse.refusals), "it pleases neither"
    assert len(worse.refusals) == 2
    unjudged = judge(dataclasses.replace(GOOD, judge_win_rate=None))
    assert unjudged.accepted
    assert "said too little for a second" in unjudged.flags[0]


@pytest.mark.parametrize(
    "doubt",
    [
        {"reward_trend_lower": -0.1},  # the reward may not have risen
        {"judge_trend_upper": 0.02},  # the second judge may not have fallen
        {"judge_trend": -0.08},  # it fell by next to nothing
        {"judge_trend": None, "judge_trend_upper": None},  # there is no second judge
        dict.fromkeys(PAST_ITS_BEST),  # too few iterations
    ],
)
def test_a_training_is_past_its_best_point_only_where_that_is_beyond_doubt(doubt: dict[str, float | None]) -> None:
    past = dataclasses.replace(GOOD, **PAST_ITS_BEST)
    (refusal,) = judge(past).refusals
    assert "0.600" in refusal
    assert judge(dataclasses.replace(past, **doubt)).accepted  # type: ignore[arg-type]


def test_one_set_that_falls_is_enough_and_is_named() -> None:
    worse = dataclasses.replace(AS_GOOD, candidate=0.869)
    (refusal,) = judge(dataclasses.replace(GOOD, sets=GOOD.sets | {"truthful": worse})).refusals
    assert "set truthful, 0.869 pass against 0.950" in refusal
    assert judge(
        dataclasses.replace(GOOD, sets=GOOD.sets | {"truthful": worse}), GateLimits(max_set_fall=0.09)
    ).accepted


def test_an_operator_may_move_a_limit() -> None:
    weak = dataclasses.replace(GOOD, win_rate_lower=0.45)
    assert judge(weak, GateLimits(min_win_rate_lower=0.4)).accepted


def test_a_report_fits_a_json_column_even_with_nan() -> None:
    sets = {"helpful": dataclasses.replace(AS_GOOD, serving=float("nan"))}
    body = dataclasses.replace(GOOD, kl_nats=float("nan"), extra={"bleu": float("inf")}, sets=sets).as_dict()
    assert json.loads(json.dumps(body, allow_nan=False))["kl_nats"] is None
    assert body["sets"]["helpful"] == {**dataclasses.asdict(AS_GOOD), "serving": None}
    assert body["extra"] == {"bleu": None}


RATE = st.floats(0, 1)
REPORTS = st.builds(
    EvaluationReport,
    prompts=st.integers(0, 500),
    win_rate=RATE,
    win_rate_lower=st.floats(0.3, 0.8),
    win_rate_upper=RATE,
    kl_nats=st.floats(0, 30),
    mean_tokens_candidate=st.floats(5, 60),
    mean_tokens_serving=st.floats(5, 60),
    refusal_rate_candidate=st.floats(0, 0.2),
    refusal_rate_serving=st.floats(0, 0.2),
    repetition_rate_candidate=st.floats(0, 0.1),
    repetition_rate_serving=st.floats(0, 0.1),
    safety_flag_rate_candidate=st.floats(0, 0.05),
    safety_flag_rate_serving=st.floats(0, 0.05),
    perplexity=st.floats(1, 80),
    reward_gain=st.floats(-2, 2),
    held_out_accuracy=RATE,
    held_out_accuracy_lower=st.floats(0.3, 0.9),
    held_out_accuracy_upper=RATE,
    win_rate_at_equal_length=st.none() | st.floats(0.3, 0.9),
    judge_win_rate=st.none() | RATE,
    reward_trend=st.just(0.5),
    reward_trend_lower=st.floats(-0.5, 0.5),
    judge_trend=st.floats(-1, 1),
    judge_trend_upper=st.floats(-0.5, 1),
)

LOWER_IS_WORSE = (
    "prompts", "win_rate_lower", "held_out_accuracy_lower", "win_rate_at_equal_length", "judge_win_rate", "judge_trend",
    "judge_trend_upper",
)  # fmt: skip
HIGHER_IS_WORSE = (
    "kl_nats", "refusal_rate_candidate", "repetition_rate_candidate", "safety_flag_rate_candidate", "perplexity",
    "reward_trend_lower",
)  # fmt: skip


@settings(max_examples=300)
@given(report=REPORTS, name=st.sampled_from([*LOWER_IS_WORSE, *HIGHER_IS_WORSE]), by=st.integers(1, 100))
def test_making_a_measure_worse_never_turns_a_refusal_into_acceptance(
    report: EvaluationReport, name: str, by: int
) -> None:
    value = getattr(report, name)
    if value is None:
        return
    worse = dataclasses.replace(report, **{name: value - by if name in LOWER_IS_WORSE else value + by})
    before, after = judge(report), judge(worse)
    assert before.accepted or not after.accepted
    assert len(after.refusals) >= len(before.refusals)


@settings(max_examples=300)
@given(report=REPORTS, factor=st.floats(1.0, 3.0))
def test_a_length_further_away_never_helps(report: EvaluationReport, factor: float) -> None:
    longer = report.mean_tokens_candidate >= report.mean_tokens_serving
    moved = report.mean_tokens_candidate * factor if longer else report.mean_tokens_candidate / factor
    worse = dataclasses.replace(report, mean_tokens_candidate=moved)
    assert judge(report).accepted or not judge(worse).accepted


@settings(max_examples=200)
@given(report=REPORTS, candidate=RATE, serving=RATE, by=st.floats(0, 1))
def test_a_set_that_falls_further_never_helps(
    report: EvaluationReport, candidate: float, serving: float, by: float
) -> None:
    def with_rate(rate: float) -> EvaluationReport:
        rates = SetRates(96, rate, 0.0, 1.0, serving, 0.0, 1.0)
        return dataclasses.replace(report, sets={"helpful": rates})

    before, after = judge(with_rate(candidate)), judge(with_rate(candidate - by))
    assert before.accepted or not after.accepted
    assert len(after.refusals) >= len(before.refusals)
