"""What follows from which evidence. Pure: no database."""

from dataclasses import replace
from itertools import product

import pytest
from pydantic import ValidationError

from deploy.decision import ALPHA_PARTS, Decision, Standing, Verdict, decide
from deploy.errors import BadPlan
from deploy.observed import Compared, Evidence, Served
from deploy.settings import RolloutSettings, read_plan

PLAN = RolloutSettings(min_minutes=30, min_votes=50)


def people(share: float, candidates: int, *, down: int = 0) -> list[Served]:
    """Users in the numbers that the share asks for: half vote up on two replies of four, the candidate's also down."""
    others = round(candidates * (1 - share) / share)
    rows = []
    for candidate, count in ((True, candidates), (False, others)):
        for user in range(count):
            rows.append(
                Served(
                    f"{candidate}-{user}", candidate, share, 4, up=2 * (user % 2), down=down if candidate else 0
                )
            )  # fmt: skip
    return rows


def evidence(step: float = 0.5, candidates: int = 400, *, down: int = 0, **changes: object) -> Evidence:
    found = Evidence("v1", "v0", step, 7, 60.0, 500, served=people(step, candidates, down=down))
    return replace(found, **changes)  # type: ignore[arg-type]


def names(decision: Decision) -> dict[str, Standing]:
    return {measure.name: measure.standing for measure in decision.measures}


def test_no_data_holds() -> None:
    decision = decide(Evidence("v1", "v0", 0.05, 1, 9000.0, 0), PLAN)
    assert decision.verdict is Verdict.HOLD
    assert "0 of 50 votes" in decision.reason
    assert "nothing to compare: fewer than 30 users in an arm" in decision.reason
    assert set(names(decision).values()) == {Standing.TOO_FEW_USERS}


def test_no_worse_goes_to_the_next_step_and_at_last_is_promoted() -> None:
    for share, following in ((0.05, 0.25), (0.25, 0.5), (0.3, 0.5), (0.5, 1.0)):
        decision = decide(evidence(share), PLAN)
        assert (decision.verdict, decision.share) == (Verdict.ADVANCE, following), decision.reason
        assert "no worse than v0: net votes per reply 0.000" in decision.reason
    decision = decide(evidence(0.5, share=1.0), PLAN)
    assert decision.verdict is Verdict.PROMOTE


def test_everything_that_is_missing_is_named() -> None:
    decision = decide(evidence(minutes=12.4, step_votes=3, held="held by ada: lunch"), PLAN)
    assert decision.verdict is Verdict.HOLD
    assert decision.reason == "held by ada: lunch; 12 of 30 minutes; 3 of 50 votes on this step"
    assert decision.share == 0.5


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_harm_goes_back_whatever_else_is_missing(share: float) -> None:
    decision = decide(evidence(share, down=1, minutes=0.0, step_votes=0, held="held by ada"), PLAN)
    assert (decision.verdict, decision.share) == (Verdict.ROLL_BACK, 0.0)
    assert "net votes per reply -0.250 is worse than 0: its upper bound is -0." in decision.reason
    assert names(decision)["net_votes"] is Standing.HARM


def test_harm_that_comes_late_on_an_earlier_step_goes_back_at_the_last() -> None:
    """At share 1 nobody is left to compare with; the votes on what was written before still come."""
    assert decide(evidence(0.5, down=1, share=1.0), PLAN).verdict is Verdict.ROLL_BACK


def test_the_more_people_would_meet_it_the_more_must_be_known() -> None:
    """The same sixty people are enough for a quarter of all, and not for everybody."""
    few = decide(evidence(0.05, 60), PLAN)
    assert (few.verdict, few.share) == (Verdict.ADVANCE, 0.25)
    many = decide(evidence(0.5, 60), PLAN)
    assert many.verdict is Verdict.HOLD
    assert names(many)["net_votes"] is Standing.UNDECIDED
    assert "must be above -0.100" in many.reason


def test_at_the_last_step_only_harm_stands_against_promotion() -> None:
    """Nobody is left to compare with there, so a bound that late votes moved a hair back would stay where it is."""
    late = decide(evidence(0.5, 60, share=1.0), PLAN)
    assert names(late)["net_votes"] is Standing.UNDECIDED
    assert late.verdict is Verdict.PROMOTE
    assert "net votes per reply 0.000, at least -0." in late.reason
    assert decide(evidence(0.5, 10, share=1.0), PLAN).verdict is Verdict.HOLD  # nobody ever could compare


def test_both_measures_have_a_veto_and_one_is_enough() -> None:
    level = [Compared(f"u{user}", won=2, lost=2, level=1) for user in range(600)]
    assert decide(evidence(compared=level), PLAN).verdict is Verdict.ADVANCE
    assert decide(evidence(compared=level, served=()), PLAN).verdict is Verdict.ADVANCE
    mixed = [Compared(f"u{user}", won=user % 2, lost=1 - user % 2, level=0) for user in range(40)]
    held = decide(evidence(compared=mixed), PLAN)
    assert held.verdict is Verdict.HOLD
    assert names(held) == {"win_rate": Standing.UNDECIDED, "net_votes": Standing.NO_WORSE}
    lost = [Compared(f"u{user}", won=user % 4 == 0, lost=user % 4 > 0, level=0) for user in range(200)]
    assert decide(evidence(compared=lost), PLAN).verdict is Verdict.ROLL_BACK
    assert decide(evidence(compared=mixed[:29]), PLAN).verdict is Verdict.ADVANCE, "too few to say anything"


def test_one_user_is_one_user_however_much_they_say() -> None:
    """Ten thousand votes of one person, all against the candidate, and a thousand choices."""
    calm = evidence(0.5)
    loud = [*calm.served[1:], Served("loud", True, 0.5, 10_000, down=10_000, failed=500, harmful=10_000)]
    decision = decide(replace(calm, served=loud, compared=[Compared("loud", 0, 1000, 0)]), PLAN)
    assert decision.verdict is Verdict.ADVANCE, decision.reason


@pytest.mark.parametrize(("field", "words"), [("failed", "met an error"), ("harmful", "flagged a reply as harmful")])
def test_a_few_errors_or_flags_in_a_small_canary_go_back(field: str, words: str) -> None:
    calm = evidence(0.05, 60)
    alarmed = [replace(row, **{field: 1}) if row.candidate and at < 4 else row for at, row in enumerate(calm.served)]
    decision = decide(replace(calm, served=alarmed, minutes=0.1), PLAN)
    assert decision.verdict is Verdict.ROLL_BACK
    assert f"of 4 users who {words}, 4 were the candidate's, at a share of 5%" in decision.reason
    everywhere = [replace(row, **{field: 1}) for row in calm.served]
    assert decide(replace(calm, served=everywhere), PLAN).verdict is Verdict.ADVANCE, "bad for all is not worse"


def test_users_who_are_missing_from_an_arm_go_back() -> None:
    calm = evidence(0.5)
    missing = [row for row in calm.served if not row.candidate or int(row.user.rpartition("-")[2]) < 200]
    decision = decide(replace(calm, served=missing), PLAN)
    assert decision.verdict is Verdict.ROLL_BACK
    assert "the arms cannot be compared: 200 of 600 users met the candidate at a share of 50%" in decision.reason
    [alarm] = [each for each in decision.alarms if each.name == "sample_ratio"]
    assert alarm.raised
    assert alarm.p_value <= alarm.alpha


def test_every_guardrail_spends_its_own_part_of_alpha() -> None:
    assert sum(ALPHA_PARTS.values()) == pytest.approx(1.0)
    decision = decide(evidence(), PLAN)
    found = (*decision.measures, *decision.alarms, *decision.guardrails)
    assert {each.name for each in found} == set(ALPHA_PARTS)
    assert len(found) == len(ALPHA_PARTS)
    for alarm in decision.alarms:
        assert alarm.alpha == pytest.approx(PLAN.alpha * ALPHA_PARTS[alarm.name])


def test_a_later_step_pays_for_being_another_test() -> None:
    """The same counts are less of a surprise as the second step's, and a quiet first step does not change that."""
    first = decide(evidence(0.5, 30), PLAN)
    two = [*people(0.25, 30), *people(0.5, 30)]
    second = decide(evidence(served=two), PLAN)
    assert first.alarms[0].share == 0.5
    flagged = [replace(row, failed=1) if row.candidate and row.share == 0.5 else row for row in two]
    alone = [replace(row, failed=1) if row.candidate else row for row in people(0.5, 30)]
    late, soon = (decide(evidence(served=rows), PLAN).alarms[0] for rows in (flagged, alone))
    assert (late.share, late.users) == (soon.share, soon.users)
    assert late.p_value == pytest.approx(3 * soon.p_value)
    assert not second.alarms[0].raised


def test_the_decision_is_plain_data() -> None:
    import json

    for share, down in product((0.05, 0.5), (0, 1)):
        body = json.loads(json.dumps(decide(evidence(share, down=down), PLAN).as_dict()))
        assert body["verdict"] in list(Verdict)
        assert {measure["name"] for measure in body["measures"]} == {"win_rate", "net_votes"}


@pytest.mark.parametrize("steps", [[], [0.5], [0.5, 0.25, 1.0], [0.0, 1.0], [0.5, 0.5, 1.0], [0.5, 1.5]])
def test_steps_rise_to_one(steps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="rise"):
        RolloutSettings(steps=tuple(steps))
    monkeypatch.setenv("KUDOS_ROLLOUT_STEPS", str(steps))
    with pytest.raises(BadPlan, match=r"KUDOS_ROLLOUT_STEPS=.*shares must rise from above 0 to 1"):
        read_plan()


def test_steps_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_STEPS", "0.1, 1")
    with pytest.raises(BadPlan, match="KUDOS_ROLLOUT_STEPS is a JSON list"):
        read_plan()


def test_the_plan_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_STEPS", "[0.01, 0.1, 1]")
    monkeypatch.setenv("KUDOS_ROLLOUT_AUTOMATIC", "true")
    plan = read_plan()
    assert (plan.steps, plan.automatic) == ((0.01, 0.1, 1.0), True)
    assert decide(evidence(0.05), plan).share == 0.1
