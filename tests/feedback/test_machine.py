"""A state machine: whatever users do in whatever order, and whenever the process dies, the log agrees with a model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydantic import SecretStr

from feedback.errors import IdempotencyConflict, UnknownTarget, Unvotable
from feedback.ledger import Ledger, finish_reply, recover_unfinished
from feedback.settings import Settings
from feedback.store import open_store
from feedback.verdicts import effective_votes
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import MigratedDatabases, add_comparison, add_reply

USERS = st.sampled_from(["ada", "bob"])
BALLOTS = st.one_of(
    st.builds(Ballot, thumb=st.sampled_from(["up", "down"]), comment=st.sampled_from([None, "why"])),
    st.builds(Ballot, rating=st.sampled_from([0.0, 0.5, 1.0])),
)
CHOICES = st.builds(Ballot, choice=st.sampled_from(["left", "right", "tie", "both_bad"]))
KEYS = st.one_of(st.none(), st.sampled_from(["k1", "k2", "k3"]))


class LogMachine(RuleBasedStateMachine):
    """The model: for each user and target the list of what was said, None for a withdrawal."""

    lend: Any  # gives the settings of an empty database for a while; set per database, below

    replies = Bundle("replies")
    comparisons = Bundle("comparisons")

    @initialize()
    def open(self) -> None:
        self.loan = type(self).lend()
        self.settings: Settings = self.loan.__enter__()
        self.store = open_store(self.settings)
        self.ledger = Ledger(self.store)
        self.owner: dict[str, str] = {}
        self.state: dict[str, str] = {}
        self.said: dict[tuple[str, str], list[Ballot | None]] = {}
        self.keys: dict[tuple[str, str], tuple[str, Ballot, int]] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.ledger.close()
            self.store.close()
            self.loan.__exit__(None, None, None)

    def run(self, operation: Any) -> Any:
        return self.ledger.submit(operation).result(30)

    @rule(target=replies, user=USERS, state=st.sampled_from(["complete", "stopped", "failed", "streaming"]))
    def reply(self, user: str, state: str) -> str:
        reply_id = self.run(lambda session: add_reply(session, user, state=state))
        self.owner[reply_id], self.state[reply_id] = user, state
        return reply_id

    @rule(target=comparisons, user=USERS, left=st.sampled_from(["complete", "failed"]))
    def comparison(self, user: str, left: str) -> str:
        comparison_id = self.run(lambda session: add_comparison(session, user, states=(left, "complete")))
        self.owner[comparison_id], self.state[comparison_id] = user, left
        return comparison_id

    @rule(reply_id=replies)
    def finish(self, reply_id: str) -> None:
        if self.state[reply_id] == "streaming":
            self.run(lambda session: finish_reply(session, reply_id, state="complete", text="done"))
            self.state[reply_id] = "complete"

    @rule(user=USERS, reply_id=replies, ballot=BALLOTS, key=KEYS)
    def vote(self, user: str, reply_id: str, ballot: Ballot, key: str | None) -> None:
        self._vote(user, "reply", reply_id, ballot, key)

    @rule(user=USERS, comparison_id=comparisons, ballot=CHOICES, key=KEYS)
    def choose(self, user: str, comparison_id: str, ballot: Ballot, key: str | None) -> None:
        self._vote(user, "comparison", comparison_id, ballot, key)

    def _vote(self, user: str, kind: str, target: str, ballot: Ballot, key: str | None) -> None:
        def cast() -> Any:
            return self.run(
                lambda session: cast_vote(
                    session, user_id=user, target_kind=kind, target_id=target, ballot=ballot, idempotency_key=key
                )
            )

        if key is not None and (user, key) in self.keys:
            if self.keys[user, key][:2] != (target, ballot):
                with pytest.raises(IdempotencyConflict):
                    cast()
            else:
                result = cast()
                assert (result.outcome, result.revision) == ("duplicate", self.keys[user, key][2])
            return
        if self.owner[target] != user:
            with pytest.raises(UnknownTarget):
                cast()
            return
        if self.state[target] not in ("complete", "stopped"):
            with pytest.raises(Unvotable):
                cast()
            return
        said = self.said.setdefault((user, target), [])
        result = cast()
        if said and said[-1] == ballot:
            assert (result.outcome, result.revision) == ("duplicate", len(said))
            return
        assert result.outcome == ("changed" if said and said[-1] is not None else "accepted")
        said.append(ballot)
        assert result.revision == len(said)
        if key is not None:
            self.keys[user, key] = (target, ballot, len(said))

    @rule(user=USERS, reply_id=replies)
    def withdraw(self, user: str, reply_id: str) -> None:
        said = self.said.get((user, reply_id), [])
        take_back = lambda session: withdraw_vote(  # noqa: E731
            session, user_id=user, target_kind="reply", target_id=reply_id
        )
        if not said:
            with pytest.raises(UnknownTarget):
                self.run(take_back)
            return
        result = self.run(take_back)
        assert result.outcome == ("duplicate" if said[-1] is None else "withdrawn")
        if said[-1] is not None:
            said.append(None)

    @rule()
    def crash_and_recover(self) -> None:
        """The process dies: its connections are dropped in mid-flight, then the next one recovers."""
        self.store.engine.dispose()
        self.ledger.close()
        self.store.close()
        self.store = open_store(self.settings)
        self.ledger = Ledger(self.store)
        unfinished = [target for target, state in self.state.items() if state == "streaming"]
        assert self.run(lambda session: recover_unfinished(session, "here")) == len(unfinished)
        for target in unfinished:
            self.state[target] = "incomplete"

    @rule(user=USERS, reply_id=replies, ballot=BALLOTS)
    def vote_that_dies(self, user: str, reply_id: str, ballot: Ballot) -> None:
        """The operation fails after its vote: the vote must not be there."""

        class Died(Exception):
            pass

        def operation(session: Any) -> None:
            cast_vote(session, user_id=user, target_kind="reply", target_id=reply_id, ballot=ballot)
            raise Died

        with pytest.raises((Died, UnknownTarget, Unvotable)):
            self.run(operation)

    @invariant()
    def the_log_says_what_was_said(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.read() as session:
            found = {(vote.user_id, vote.target_id): vote for vote in effective_votes(session)}
        expected = {place: said for place, said in self.said.items() if said and said[-1] is not None}
        assert found.keys() == expected.keys()
        for place, said in expected.items():
            ballot, vote = said[-1], found[place]
            assert ballot is not None
            assert {name: getattr(vote, name) for name in ballot.values()} == ballot.values()
            assert vote.revision == len(said)


def test_the_log_on_sqlite() -> None:
    @contextmanager
    def lend() -> Iterator[Settings]:
        with tempfile.TemporaryDirectory(prefix="kudos-machine-") as folder:
            yield Settings(home=Path(folder), database_url=None)

    run_machine(lend, max_examples=25, stateful_step_count=30)


@pytest.mark.postgres
def test_the_log_on_postgres(migrated_databases: MigratedDatabases, tmp_path: Path) -> None:
    @contextmanager
    def lend() -> Iterator[Settings]:
        with migrated_databases.borrow() as url:
            yield Settings(home=tmp_path, database_url=SecretStr(url))

    run_machine(lend, max_examples=12, stateful_step_count=25)


def run_machine(lend: Any, **limits: int) -> None:
    machine = type("Machine", (LogMachine,), {"lend": staticmethod(lend)})
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(deadline=None, derandomize=True, suppress_health_check=slow, **limits),  # type: ignore[arg-type]
    )
