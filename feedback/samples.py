"""Votes to training samples, each of which names the vote that it came from.

Only effective, unquarantined votes of users who agreed and are not erased, on replies that ended well, were sampled
freely by one policy from end to end, and were not deleted; and none that came in a burst (`feedback.bursts`). What a
sample is worth to a model is not decided here: a `both_bad` stays a `both_bad`, and a flag stays a flag. No tokeniser:
ids are those that the engine recorded, or None where the reply was imported as text.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import FromClause, Select, Text, and_, cast, false, func, or_, select, union_all
from sqlalchemy.orm import Session

from feedback.bursts import find_bursts, votes_in
from feedback.errors import UserErased
from feedback.packing import unpack_ids
from feedback.sample import CorrectionSample, PairSample, Sample, SampleSet, Side, ThumbSample
from feedback.schema import Comparison, Conversation, Reply, ReplyState, TargetKind, Thumb, TrainingSample, User
from feedback.splits import Assign, Key, Plan, Split, VoteKeys, plan_split
from feedback.statements import table, upsert_many
from feedback.tombstones import erased_among
from feedback.verdicts import effective_vote

_PAGE = 500  # rows that a query holds in memory


__all__ = [
    "CorrectionSample",
    "PairSample",
    "Sample",
    "SampleSet",
    "Side",
    "ThumbSample",
    "collect",
    "plan_samples",
    "record_lineage",
    "stream",
]


def collect(
    session: Session,
    *,
    consent_default: bool,
    held_out_fraction: float = 0.15,
    min_held_out: int = 20,
    max_weight_per_user: float | None = 100.0,
    max_votes: int | None = None,
    burst_votes_per_minute: int = 0,
) -> SampleSet:
    """All samples at once. Run it in one `Store.read()`, whose snapshot keeps its passes over the log consistent.

    `max_votes` bounds memory: only the newest that many votes are used. To go through any number of samples without
    holding them, use `stream`. `burst_votes_per_minute`: as the setting; by itself it looks for none.
    """
    found = find_bursts(session, burst_votes_per_minute)
    left_out = votes_in(found)
    plan = plan_samples(
        session,
        consent_default=consent_default,
        held_out_fraction=held_out_fraction,
        min_held_out=min_held_out,
        max_votes=max_votes,
        left_out=left_out,
    )
    last = session.execute(select(func.coalesce(func.max(effective_vote.c.id), 0))).scalar_one()
    samples = SampleSet(split=plan.report, last_vote_id=last, bursts=found)
    for sample in stream(
        session,
        plan.assign,
        consent_default=consent_default,
        weights=plan.weights(max_weight_per_user),
        max_votes=max_votes,
        left_out=left_out,
    ):
        if isinstance(sample, ThumbSample):
            samples.thumbs.append(sample)
        elif isinstance(sample, PairSample):
            samples.pairs.append(sample)
        else:
            samples.corrections.append(sample)
    return samples


def plan_samples(
    session: Session,
    *,
    consent_default: bool,
    held_out_fraction: float = 0.15,
    min_held_out: int = 20,
    max_votes: int | None = None,
    left_out: Container[int] = frozenset(),
) -> Plan:
    """Decides the split, in one pass over the log. Of each vote only what that depends on is held: about 200 bytes.

    `left_out`: ids of votes that are to be as if they were not there.
    """
    eligible = _eligible(session, consent_default, max_votes)
    rows = session.execute(
        select(eligible.c.id, eligible.c.user_id, eligible.c.prompt_digest), execution_options={"yield_per": _PAGE}
    )
    keys = VoteKeys()
    for vote_id, user_id, prompt_digest in rows:
        if vote_id not in left_out:
            keys.add(vote_id, user_id, prompt_digest)
    return plan_split(keys, fraction=held_out_fraction, min_held_out=min_held_out)


def stream(
    session: Session,
    assign: Assign,
    *,
    consent_default: bool,
    weights: Mapping[str, float] | None = None,
    max_votes: int | None = None,
    left_out: Container[int] = frozenset(),
) -> Iterator[ThumbSample | PairSample | CorrectionSample]:
    """Samples in the order of their votes, first those on replies, then those on comparisons. Holds a page of them.

    `assign` gives a vote's side (`plan_samples(...).assign`), or None to leave it out; `weights` what a vote of a user
    weighs (`plan_samples(...).weights(...)`), 1 where it does not say; `left_out` ids of votes that are passed over.
    """
    weight_of = (weights or {}).get
    oldest = _oldest_vote(session, max_votes)
    conditions = (_conditions(consent_default), effective_vote.c.id >= oldest)
    for statement, build in ((_reply_votes(), _from_reply), (_comparison_votes(), _from_comparison)):
        query = statement.where(*conditions).order_by(effective_vote.c.id)
        for row in session.execute(query, execution_options={"yield_per": _PAGE}):
            key = Key(*row[:3])
            if key.vote_id in left_out:
                continue
            split = assign(key)
            if split is not None:
                yield from build(row, split, weight_of(key.user_id, 1.0))


def record_lineage(session: Session, run_id: str, reward_model_id: str | None, samples: SampleSet) -> int:
    """Writes down which votes a run learned from, or was tested on. Doing it again (a resumed run) changes nothing.

    Raises:
        UserErased: one of these people was erased after the samples were read.
    """
    if erased_among(session, {sample.user_id for sample in samples}):
        raise UserErased("somebody was erased while their votes were being read: start again, without those")
    rows = [
        {
            "run_id": run_id,
            "reward_model_id": reward_model_id,
            "vote_id": sample.vote_id,
            "user_id": sample.user_id,
            "kind": sample.kind,
            "split": sample.split.value,
            "weight": sample.weight,
        }
        for sample in samples
    ]
    upsert_many(session, TrainingSample, rows, key=("run_id", "vote_id", "kind"))
    return len(rows)


_REPLY = table(Reply)
_LEFT = _REPLY.alias("left_reply")
_RIGHT = _REPLY.alias("right_reply")
_COMPARISON = table(Comparison)
_USER = table(User)
_CONVERSATION = table(Conversation)
# Of these there are few: to look here costs less than to look up the conversation of each vote.
_DELETED = (
    select(_CONVERSATION.c.id)
    .where(_CONVERSATION.c.deleted_at.is_not(None))
    .cte("deleted_conversation")
    .prefix_with("MATERIALIZED")
)


CONTENT_FILTER = "content_filter"  # the finish reason of a reply that the safety filter cut
_HELD = ("json_schema", "tools")  # in `sampling` of a reply that was not its policy's free answer to its messages


def ended_well(reply: FromClause) -> Any:
    """Whole, and what one policy answered to the messages by itself."""
    return and_(
        reply.c.state.in_([ReplyState.COMPLETE.value, ReplyState.STOPPED.value]),
        reply.c.text != "",
        reply.c.mixed_versions.is_(None),
        func.coalesce(reply.c.finish_reason, "") != CONTENT_FILTER,
        # Not by a JSON operator: PostgreSQL's fail where any string of the value has \u0000 in it, as a client's may.
        *(~cast(reply.c.sampling, Text).contains(f'"{name}":', autoescape=True) for name in _HELD),
    )


def same_question(left: FromClause, right: FromClause) -> Any:
    """False where a comparison was of system prompts: its replies do not answer the same messages."""
    return left.c.prompt_digest == right.c.prompt_digest


def _conditions(consent_default: bool) -> Any:
    return and_(
        effective_vote.c.quarantined == false(),
        _USER.c.erased_at.is_(None),
        func.coalesce(_USER.c.consent, consent_default),
        _DELETED.c.id.is_(None),
    )


def _reply_votes() -> Select[Any]:
    vote = effective_vote
    on_target = and_(vote.c.target_kind == TargetKind.REPLY.value, _REPLY.c.id == vote.c.target_id)
    joined = (
        vote.join(_REPLY, on_target)
        .outerjoin(_USER, _USER.c.id == vote.c.user_id)
        .outerjoin(_DELETED, _DELETED.c.id == _REPLY.c.conversation_id)
    )
    says_something = or_(
        vote.c.thumb.is_not(None), vote.c.rating.is_not(None), vote.c.correction.is_not(None), vote.c.harmful
    )
    return (
        select(
            vote.c.id,
            vote.c.user_id,
            _REPLY.c.prompt_digest,
            *(vote.c[name] for name in ("thumb", "rating", "reasons", "correction", "harmful")),
            *(_REPLY.c[name] for name in ("id", "messages", "prompt_token_ids", "text", "token_ids")),
            *(_REPLY.c[name] for name in ("policy_version", "arm", "propensity", "source")),
        )
        .select_from(joined)
        .where(ended_well(_REPLY), says_something)
    )


def _comparison_votes() -> Select[Any]:
    vote = effective_vote
    on_target = and_(vote.c.target_kind == TargetKind.COMPARISON.value, _COMPARISON.c.id == vote.c.target_id)
    joined = (
        vote.join(_COMPARISON, on_target)
        .join(_LEFT, _LEFT.c.id == _COMPARISON.c.left_reply_id)
        .join(_RIGHT, _RIGHT.c.id == _COMPARISON.c.right_reply_id)
        .outerjoin(_USER, _USER.c.id == vote.c.user_id)
        .outerjoin(_DELETED, _DELETED.c.id == _COMPARISON.c.conversation_id)
    )
    sides = [
        side.c[name].label(f"{label}_{name}")
        for side, label in ((_LEFT, "left"), (_RIGHT, "right"))
        for name in ("id", "text", "token_ids", "policy_version", "prompt_token_ids")
    ]
    return (
        select(
            vote.c.id,
            vote.c.user_id,
            _LEFT.c.prompt_digest,
            *(vote.c[name] for name in ("reasons", "choice")),
            *(_COMPARISON.c[name] for name in ("propensity", "source")),
            _LEFT.c.messages,
            *sides,
        )
        .select_from(joined)
        .where(
            ended_well(_LEFT),
            ended_well(_RIGHT),
            same_question(_LEFT, _RIGHT),
            vote.c.choice.is_not(None),
        )
    )


def _eligible(session: Session, consent_default: bool, max_votes: int | None) -> FromClause:
    """(id, user_id, prompt_digest) of every vote that becomes a sample."""
    conditions = (_conditions(consent_default), effective_vote.c.id >= _oldest_vote(session, max_votes))
    narrow = [
        statement.where(*conditions).with_only_columns(
            effective_vote.c.id, effective_vote.c.user_id, prompt.c.prompt_digest, maintain_column_froms=True
        )
        for statement, prompt in ((_reply_votes(), _REPLY), (_comparison_votes(), _LEFT))
    ]
    return union_all(*narrow).subquery("eligible")


def _oldest_vote(session: Session, max_votes: int | None) -> int:
    if max_votes is None:
        return 0
    newest = effective_vote.c.id.desc()
    found = session.execute(select(effective_vote.c.id).order_by(newest).offset(max_votes - 1).limit(1)).scalar()
    return 0 if found is None else int(found)


# A row is taken apart by position: by name it costs more than all the rest of a sample.


def _from_reply(row: Any, split: Split, weight: float) -> Sequence[ThumbSample | CorrectionSample]:
    vote_id, user_id, prompt_digest, thumb, rating, reasons, correction, harmful, *rest = row
    reply_id, messages, prompt_ids, text, token_ids, policy_version, arm, propensity, source = rest
    common: dict[str, Any] = {
        "vote_id": vote_id,
        "user_id": user_id,
        "prompt_digest": prompt_digest,
        "split": split,
        "weight": weight,
        "messages": messages,
        "prompt_token_ids": _ids(prompt_ids),
        "reasons": reasons,
        "source": source,
        "propensity": propensity,
        "reply_id": reply_id,
        "text": text,
        "token_ids": _ids(token_ids),
        "policy_version": policy_version,
    }
    found: list[ThumbSample | CorrectionSample] = []
    if thumb is not None or rating is not None or harmful:
        said = None if thumb is None else Thumb(thumb)
        found.append(ThumbSample(**common, arm=arm, thumb=said, rating=rating, harmful=harmful))
    if correction is not None:
        found.append(CorrectionSample(**common, correction=correction))
    return found


def _from_comparison(row: Any, split: Split, weight: float) -> Sequence[PairSample]:
    vote_id, user_id, prompt_digest, reasons, choice, propensity, source, messages, *sides = row
    left_id, left_text, left_ids, left_version, left_prompt, *right = sides
    right_id, right_text, right_ids, right_version, right_prompt = right
    return [
        PairSample(
            vote_id=vote_id,
            user_id=user_id,
            prompt_digest=prompt_digest,
            split=split,
            weight=weight,
            messages=messages,
            prompt_token_ids=_ids(left_prompt if left_prompt is not None else right_prompt),
            reasons=reasons,
            source=source,
            propensity=propensity,
            left=Side(reply_id=left_id, text=left_text, token_ids=_ids(left_ids), policy_version=left_version),
            right=Side(reply_id=right_id, text=right_text, token_ids=_ids(right_ids), policy_version=right_version),
            choice=choice,
        )
    ]


def _ids(packed: bytes | None) -> list[int] | None:
    return None if packed is None else unpack_ids(packed)
