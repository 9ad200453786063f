"""Which votes are a burst, that nobody who reads is in one, and that what is in one is read past and not lost."""

import json
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from typer.testing import CliRunner

import kudos
from feedback.bursts import WINDOW, Burst, Cast, bursts, find_bursts, votes_in
from feedback.exports import export_unpaired
from feedback.samples import SampleSet, collect
from feedback.schema import Comparison, Reply, Vote
from feedback.settings import Settings
from feedback.statements import table
from feedback.store import Store
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply

NOON = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)

SECONDS = st.floats(0, 300, allow_nan=False).map(lambda seconds: round(seconds, 6))
LOGS = st.lists(st.tuples(st.sampled_from("abc"), SECONDS), max_size=40).map(
    lambda said: [Cast(user, NOON + timedelta(seconds=at), number) for number, (user, at) in enumerate(said)]
)
MOST = st.integers(1, 8)


@given(LOGS, MOST)
def test_a_vote_is_in_a_burst_where_more_than_so_many_lie_within_a_minute_of_it(votes: list[Cast], most: int) -> None:
    def crowded(vote: Cast) -> bool:
        own = [each.at for each in votes if each.user_id == vote.user_id]
        windows = [[at for at in own if timedelta(0) <= at - start < WINDOW] for start in own]
        return any(vote.at in window and len(window) > most for window in windows)

    assert votes_in(bursts(votes, most)) == {vote.vote_id for vote in votes if crowded(vote)}


@given(LOGS, MOST, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(votes: list[Cast], most: int, chance: random.Random) -> None:
    shuffled = list(votes)
    chance.shuffle(shuffled)
    assert bursts(shuffled, most) == bursts(votes, most)


@given(LOGS, MOST)
def test_whoever_allows_more_finds_no_other_votes(votes: list[Cast], most: int) -> None:
    assert votes_in(bursts(votes, most + 1)) <= votes_in(bursts(votes, most))


@given(LOGS, MOST, st.data())
def test_fewer_votes_make_no_new_burst(votes: list[Cast], most: int, data: st.DataObject) -> None:
    """So the log may be narrowed before it is looked at exactly."""
    fewer = data.draw(st.lists(st.sampled_from(votes), unique=True) if votes else st.just([]))
    assert votes_in(bursts(fewer, most)) <= votes_in(bursts(votes, most))


@given(st.lists(st.floats(0, 100), max_size=60), MOST)
def test_a_slow_voter_is_never_caught(pauses: list[float], most: int) -> None:
    slowest, at = WINDOW / most, NOON
    votes = []
    for number, pause in enumerate(pauses):
        # Times are whole microseconds: without one more, so many pauses could be a minute less a rounding.
        at += slowest + timedelta(microseconds=1) + timedelta(seconds=pause)
        votes.append(Cast("ada", at, number))
    assert bursts(votes, most) == []


@given(LOGS, MOST)
def test_bursts_of_one_user_lie_apart(votes: list[Cast], most: int) -> None:
    found = bursts(votes, most)
    assert all(len(burst.vote_ids) > most for burst in found)
    for one, next_one in pairwise(found):
        assert one.user_id < next_one.user_id or one.ended <= next_one.began
    assert len(votes_in(found)) == sum(len(burst.vote_ids) for burst in found)


@given(LOGS, MOST)
def test_a_burst_fills_a_minute_of_the_clock_by_more_than_half(votes: list[Cast], most: int) -> None:
    """By which the database tells whose votes are worth a look."""
    minutes: dict[tuple[str, datetime], int] = {}
    for vote in votes:
        key = (vote.user_id, vote.at.replace(second=0, microsecond=0))
        minutes[key] = minutes.get(key, 0) + 1
    hasty = {user for (user, _), count in minutes.items() if 2 * count > most}
    assert {burst.user_id for burst in bursts(votes, most)} <= hasty


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="most: must be 1 or more, not 0"):
        bursts([], 0)


def cast_at(session: Session, user: str, seconds: float, *, target: str | None = None, kind: str = "reply") -> int:
    found = cast_vote(
        session,
        user_id=user,
        target_kind=kind,
        target_id=target or add_reply(session, user),
        ballot=Ballot(thumb="up") if kind == "reply" else Ballot(choice="left"),
    ).vote_id
    at = NOON + timedelta(seconds=seconds)
    session.execute(table(Vote).update().where(table(Vote).c.id == found).values(created_at=at))
    return found


def found_in(store: Store, most: int) -> list[Burst]:
    with store.read() as session:
        return find_bursts(session, most)


def samples_of(store: Store, most: int) -> SampleSet:
    with store.read() as session:
        return collect(session, consent_default=True, burst_votes_per_minute=most)


def test_a_burst_does_not_train_and_is_there_again_when_the_limit_is_mended(store: Store) -> None:
    with store.write() as session:
        fast = [cast_at(session, "bot", 3.0 * number) for number in range(10)]  # over the turn of a minute
        later = cast_at(session, "bot", 600)
        reader = [cast_at(session, "ada", 20.0 * number) for number in range(10)]
    (burst,) = found_in(store, 5)
    assert burst == Burst("bot", NOON, NOON + timedelta(seconds=27), tuple(fast))
    samples = samples_of(store, 5)
    assert {sample.vote_id for sample in samples} == {later, *reader}
    assert (samples.bursts, samples.split.votes) == ([burst], 11)
    for most in (0, 10):
        samples = samples_of(store, most)
        assert ({sample.vote_id for sample in samples}, samples.bursts) == ({*fast, later, *reader}, [])


def test_choices_and_thumbs_are_one_pace(store: Store) -> None:
    with store.write() as session:
        ids = [cast_at(session, "bot", number) for number in range(3)]
        ids += [
            cast_at(session, "bot", 3 + number, target=add_comparison(session, "bot"), kind="comparison")
            for number in range(3)
        ]
    assert votes_in(found_in(store, 5)) == set(ids)
    assert found_in(store, 6) == []


def test_only_the_votes_in_effect_are_counted(store: Store) -> None:
    """Somebody who cannot make up their mind votes once, and what was withdrawn is not there."""
    with store.write() as session:
        target = add_reply(session, "ada")
        for number in range(8):
            said = Ballot(thumb="up" if number % 2 else "down")
            cast_vote(session, user_id="ada", target_kind="reply", target_id=target, ballot=said)
        for number in range(8):
            target = add_reply(session, "bob")
            cast_at(session, "bob", number, target=target)
            if number % 2:
                withdraw_vote(session, user_id="bob", target_kind="reply", target_id=target)
    assert found_in(store, 4) == []
    assert [burst.user_id for burst in found_in(store, 3)] == ["bob"]


def test_an_import_has_no_pace(store: Store) -> None:
    with store.write() as session:
        for number in range(6):
            target = add_reply(session, "judge", source="hh")
            cast_at(session, "judge", number, target=target)
            pair = add_comparison(session, "judge")
            session.execute(table(Comparison).update().where(table(Comparison).c.id == pair).values(source="hh"))
            session.execute(table(Reply).update().where(table(Reply).c.comparison_id == pair).values(source="hh"))
            cast_at(session, "judge", number, target=pair, kind="comparison")
    assert found_in(store, 3) == []


def test_exports_leave_it_out_too(store: Store) -> None:
    with store.write() as session:
        for number in range(4):
            cast_at(session, "bot", number)
        cast_at(session, "ada", 0)
    with store.read() as session:
        assert len(list(export_unpaired(session, consent_default=True, burst_votes_per_minute=3))) == 1
        assert len(list(export_unpaired(session, consent_default=True))) == 5


def test_the_command_says_who_and_when(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_HOME", str(settings.home))
    if settings.database_url is not None:
        monkeypatch.setenv("KUDOS_DATABASE_URL", settings.database_url.get_secret_value())
    with store.write() as session:
        for number in range(31):
            cast_at(session, "bot", number)

    def said(*arguments: str) -> Any:
        ended = CliRunner().invoke(kudos.app, ["feedback", "bursts", *arguments])
        assert ended.exit_code == 0, ended.output
        return ended.output.strip()

    assert said() == "bot: 31 votes within 30 s from 2026-01-01 12:00:30 UTC"
    assert said("--votes-per-minute", "31") == "nobody cast more than 31 votes within a minute"
    whole = json.loads(said("--json"))
    assert whole["votes_per_minute"] == 30
    (burst,) = whole["data"]
    assert (burst["user"], burst["votes"], burst["began"]) == ("bot", 31, "2026-01-01T12:00:30+00:00")
    monkeypatch.setenv("KUDOS_BURST_VOTES_PER_MINUTE", "0")
    assert said() == "nobody looks for bursts: KUDOS_BURST_VOTES_PER_MINUTE is 0"
