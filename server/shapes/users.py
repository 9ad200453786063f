"""What users see of the log: conversations, replies, votes, and themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from feedback.schema import Choice, ReplyState, TargetKind, Thumb
from feedback.votes import VoteOutcome
from server.shapes import Shape, shown

_AT = "2026-11-27T12:00:00Z"
_HEAD = {
    "id": "conv-01k9s6m1x0",
    "object": "conversation",
    "title": "Hello!",
    "created_at": _AT,
    "updated_at": _AT,
}
_VOTE = {
    "thumb": "up",
    "rating": None,
    "reasons": ["friendly"],
    "comment": None,
    "correction": None,
    "harmful": False,
    "choice": None,
}
_REPLY = {
    "id": "chatcmpl-01k9s6m1x4",
    "parent_id": None,
    "regenerate_of": None,
    "comparison_id": None,
    "side": None,
    "created_at": _AT,
    "finished_at": _AT,
    "state": "complete",
    "finish_reason": "stop",
    "messages": [{"role": "user", "content": "Hello!"}],
    "text": "Hello! How can I help you?",
    "policy_version": "v0-0a1b2c3d",
    "vote": _VOTE,
    "html": "<p>Hello! How can I help you?</p>",
}


class VoteBody(Shape):
    thumb: Thumb | None
    rating: float | None
    reasons: list[str]
    comment: str | None
    correction: str | None
    harmful: bool
    choice: Choice | None


class KeptReply(Shape):
    id: str
    parent_id: str | None
    """The reply before it in the conversation."""
    regenerate_of: str | None
    comparison_id: str | None
    side: Literal["left", "right"] | None
    created_at: datetime
    finished_at: datetime | None
    state: ReplyState
    finish_reason: str | None
    messages: list[dict[str, Any]]
    """What it answers: the whole context."""
    text: str
    policy_version: str | None
    """null in a comparison without a choice."""
    vote: VoteBody | None


class ShownReply(KeptReply):
    html: str | None
    """The text as Markdown, cleaned; null while it is written, and for what stays plain text."""


class OneReply(ShownReply):
    model_config = shown({"object": "reply", "conversation_id": "conv-01k9s6m1x0", **_REPLY})
    object: Literal["reply"]
    conversation_id: str


class _Head(Shape):
    id: str
    object: Literal["conversation"]
    title: str
    created_at: datetime
    updated_at: datetime


class Head(_Head):
    model_config = shown(_HEAD)


class Heads(Shape):
    model_config = shown({"object": "list", "data": [_HEAD], "has_more": False})
    object: Literal["list"]
    data: list[Head]
    has_more: bool
    """Ask again with `before` set to the last one's id."""


class Sides(Shape):
    left: str | None
    right: str | None


class KeptComparison(Shape):
    id: str
    left_reply_id: str
    right_reply_id: str
    vote: VoteBody | None
    revealed: Sides | None
    """Which policy stood on which side; null before the first choice."""


class Conversation(_Head):
    model_config = shown({**_HEAD, "replies": [_REPLY], "comparisons": []})
    replies: list[ShownReply]
    comparisons: list[KeptComparison]


class Deleted(Shape):
    model_config = shown({"object": "conversation", "id": "conv-01k9s6m1x0", "deleted": True})
    object: Literal["conversation"]
    id: str
    deleted: Literal[True]


class _Vote(Shape):
    vote_id: int
    revision: int
    """1, 2, ...: how often this user has spoken about it."""
    outcome: VoteOutcome
    """`duplicate`: nothing new was said, and nothing was written."""


class Voted(_Vote):
    model_config = shown(
        {
            "object": "vote",
            "reply_id": "chatcmpl-01k9s6m1x4",
            "vote_id": 7,
            "revision": 1,
            "outcome": "accepted",
        }
    )
    object: Literal["vote"]
    reply_id: str


_CHOSEN = {
    "object": "choice",
    "comparison_id": "cmp-01k9s6m1x2",
    "vote_id": 8,
    "revision": 1,
    "outcome": "accepted",
}


class ChoiceWithdrawn(_Vote):
    model_config = shown({**_CHOSEN, "revision": 2, "outcome": "withdrawn"})
    object: Literal["choice"]
    comparison_id: str


class Chosen(ChoiceWithdrawn):
    model_config = shown({**_CHOSEN, "revealed": {"left": "v1-0a1b2c3d", "right": "v0-0a1b2c3d"}})
    revealed: Sides


class Taught(Shape):
    policy: str
    state: str
    votes: int


class Me(Shape):
    model_config = shown(
        {
            "object": "user",
            "id": "operator",
            "consent": None,
            "default": True,
            "taught": [{"policy": "v1-0a1b2c3d", "state": "accepted", "votes": 12}],
        }
    )
    object: Literal["user"]
    id: str
    consent: bool | None
    """null: the deployment's default holds."""
    default: bool
    taught: list[Taught]
    """Which policies learned from how many of one's votes."""


class Consent(Shape):
    model_config = shown({"consent": False, "default": True})
    consent: bool | None
    default: bool


class VoteRevision(VoteBody):
    target_kind: TargetKind
    target_id: str
    revision: int
    withdrawn: bool
    created_at: datetime


class ExportedConversation(_Head):
    replies: list[KeptReply]
    comparisons: list[KeptComparison]
    deleted_at: datetime | None
    """Out of its user's sight since then, and stored until it expires."""


class Export(Shape):
    model_config = shown(
        {
            "consent": None,
            "user_id": "operator",
            "exported_at": _AT,
            "conversations": [
                {
                    **_HEAD,
                    "replies": [{k: v for k, v in _REPLY.items() if k != "html"}],
                    "comparisons": [],
                    "deleted_at": None,
                }
            ],
            "votes": [
                {
                    "target_kind": "reply",
                    "target_id": "chatcmpl-01k9s6m1x4",
                    "revision": 1,
                    "withdrawn": False,
                    "created_at": _AT,
                    **_VOTE,
                }
            ],
        }
    )
    consent: bool | None
    user_id: str
    exported_at: datetime
    conversations: list[ExportedConversation]
    votes: list[VoteRevision]
    """Every revision, oldest first."""


class Erased(Shape):
    conversations: int
    replies: int
    votes: int


class Erasure(Shape):
    model_config = shown(
        {
            "object": "erasure",
            "user": "operator",
            "erased": {"conversations": 1, "replies": 2, "votes": 1},
            "policies": ["v1-0a1b2c3d"],
        }
    )
    object: Literal["erasure"]
    user: str
    erased: Erased
    policies: list[str]
    """Those that learned from this user."""
