"""Policies as rows alone, where no folder is read; and what users were served, and said of it."""

from collections.abc import Iterable

from sqlmodel import Session

from feedback.ids import new_id, prompt_digest
from feedback.ledger import begin_comparison, begin_reply, finish_reply
from feedback.packing import pack_ids
from feedback.replies import append_shadow
from feedback.schema import (
    SHADOW,
    Choice,
    Comparison,
    Policy,
    PolicyKind,
    PolicyState,
    Reply,
    ReplyState,
    TargetKind,
    Thumb,
)
from feedback.votes import Ballot, cast_vote

_QUESTION = [{"role": "user", "content": "Hello!"}]


def add_policy(
    session: Session,
    number: int,
    kind: PolicyKind = PolicyKind.ADAPTER,
    *,
    base: str | None = "v0-00000000",
    state: PolicyState = PolicyState.ACCEPTED,
) -> str:
    version = f"v{number}-{number:08x}"
    on_base = base if kind is PolicyKind.ADAPTER else None
    session.add(
        Policy(
            version=version,
            number=number,
            kind=kind,
            state=state,
            path=version,
            digest=f"{number:064x}",
            base_version=on_base,
            parent_version=on_base,
            refusals=["It is too far away."] if state is PolicyState.REFUSED else [],
        )
    )
    session.flush()
    return version


def new_reply(user: str, version: str, **fields: object) -> Reply:
    values: dict[str, object] = {
        "id": new_id("chatcmpl"),
        "conversation_id": f"conv-{user}",
        "user_id": user,
        "messages": _QUESTION,
        "prompt_digest": prompt_digest(_QUESTION),
        "policy_version": version,
    }
    return Reply(**(values | fields))


def serve(
    session: Session,
    user: str,
    version: str,
    share: float,
    *,
    candidate: bool,
    thumbs: Iterable[Thumb | None] = (None,),
    state: ReplyState = ReplyState.COMPLETE,
    **fields: object,
) -> list[str]:
    """One reply for each thumb (None: no vote), as routing logs them at this share of the candidate."""
    arm, propensity = ("canary", share) if candidate else ("stable", 1.0 - share)
    ids = []
    for thumb in thumbs:
        ids.append(begin_reply(session, new_reply(user, version, **({"arm": arm, "propensity": propensity} | fields))))
        finish_reply(session, ids[-1], state=state, text="Good day.")
        if thumb is not None:
            vote(session, user, ids[-1], Ballot(thumb=thumb))
    return ids


def shadow(session: Session, user: str, stable: str, candidate: str, *, tokens: int = 9, **fields: object) -> str:
    """A reply to somebody, and what the candidate said to the same in shadow, with so many tokens."""
    shown = begin_reply(session, new_reply(user, stable))
    finish_reply(session, shown, state=ReplyState.COMPLETE, text="Good day.", token_ids=list(range(9)))
    values: dict[str, object] = {
        "id": new_id("shadow"),
        "regenerate_of": shown,
        "arm": SHADOW,
        "source": SHADOW,
        "propensity": 0.1,
        "state": ReplyState.COMPLETE,
        "text": "Good day.",
        "token_ids": pack_ids(range(tokens)),
        "refused": False,
    }
    reply = new_reply(user, candidate, **(values | fields))
    append_shadow(session, reply)
    return reply.id


def vote(session: Session, user: str, reply_id: str, ballot: Ballot) -> int:
    return cast_vote(
        session, user_id=user, target_kind=TargetKind.REPLY, target_id=reply_id, ballot=ballot
    ).vote_id  # fmt: skip


def compare(session: Session, user: str, left: str, right: str, choice: Choice | None, **fields: object) -> str:
    """A comparison of two versions, and what the user chose."""
    replies = [new_reply(user, version, arm=side) for version, side in ((left, "left"), (right, "right"))]
    values: dict[str, object] = {
        "id": new_id("cmp"),
        "user_id": user,
        "conversation_id": f"conv-{user}",
        "left_reply_id": replies[0].id,
        "right_reply_id": replies[1].id,
        "propensity": 0.5,
    }
    comparison = Comparison(**(values | fields))
    begin_comparison(session, comparison, *replies)
    for reply in replies:
        finish_reply(session, reply.id, state=ReplyState.COMPLETE, text="Good day.")
    if choice is not None:
        cast_vote(
            session,
            user_id=user,
            target_kind=TargetKind.COMPARISON,
            target_id=comparison.id,
            ballot=Ballot(choice=choice),
        )
    return comparison.id
