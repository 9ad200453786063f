"""A log of synthetic people, written through the functions that the server writes with."""

from __future__ import annotations

import random
from typing import Any

from sqlmodel import select

from feedback.ids import new_id, prompt_digest
from feedback.ledger import begin_comparison, begin_reply, finish_reply
from feedback.schema import Comparison, Reply, ReplyState, TargetKind
from feedback.store import Store
from feedback.votes import Ballot, cast_vote
from trainer.tokens import encode_reply, render_prompt

PLEASANT = "thank you very much"
OTHERS = ("where is my order", "the sun is warm", "hello there", "the sky is blue", "how are you today")


def say(rng: random.Random, pleasant: bool) -> str:
    words = [rng.choice(OTHERS) for _ in range(rng.randint(1, 2))]
    if pleasant:
        words.insert(rng.randrange(len(words) + 1), PLEASANT)
    return ", ".join(words)


def rows_of(store: Store, table: type[Any]) -> list[Any]:
    with store.read() as session:
        return list(session.exec(select(table)).all())


def write_votes(
    store: Store,
    tokenizer: Any,
    *,
    pairs: int = 60,
    thumbs: int = 40,
    users: int = 12,
    prompts: int = 60,
    seed: int = 0,
    version: str = "v0-00000000",
    corrections: bool = False,
) -> None:
    """People who like thanks, and say so nine times in ten. corrections: a thumb down comes with thanks."""
    rng = random.Random(seed)
    questions = [[{"role": "user", "content": f"hello {number}, how are you?"}] for number in range(prompts)]

    def reply(user: str, messages: list[dict[str, str]], conversation: str) -> Reply:
        return Reply(
            id=new_id("chatcmpl"),
            conversation_id=conversation,
            user_id=user,
            messages=messages,
            prompt_digest=prompt_digest(messages),
            policy_version=version,
        )

    def finish(session: Any, row: Reply, text: str) -> None:
        ids = encode_reply(tokenizer, text)
        finish_reply(
            session,
            row.id,
            state=ReplyState.COMPLETE,
            text=text,
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            prompt_token_ids=render_prompt(tokenizer, row.messages),
            finish_reason="stop",
        )

    with store.write() as session:
        for number in range(pairs + thumbs):
            user, messages = f"u-{rng.randrange(users)}", rng.choice(questions)
            conversation, honest, pleasant = new_id("conv"), rng.random() < 0.9, rng.random() < 0.5
            if number < thumbs:
                row = reply(user, messages, conversation)
                begin_reply(session, row)
                finish(session, row, say(rng, pleasant))
                kind, target = TargetKind.REPLY, row.id
                up = pleasant == honest
                ballot = Ballot(thumb="up" if up else "down", correction=PLEASANT if corrections and not up else None)
            else:
                left, right = reply(user, messages, conversation), reply(user, messages, conversation)
                comparison = Comparison(
                    id=new_id("cmp"),
                    user_id=user,
                    conversation_id=conversation,
                    left_reply_id=left.id,
                    right_reply_id=right.id,
                )
                begin_comparison(session, comparison, left, right)
                finish(session, left, say(rng, pleasant))
                finish(session, right, say(rng, not pleasant))
                kind, target = TargetKind.COMPARISON, comparison.id
                ballot = Ballot(choice="left" if pleasant == honest else "right")
            cast_vote(session, user_id=user, target_kind=kind, target_id=target, ballot=ballot)
