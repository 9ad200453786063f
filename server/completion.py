"""Ended turns as OpenAI's chat completion: the choices of one request, or one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.turn import Turn
from server.vocabulary import Vocabulary
from server.wire import logprobs_of, usage_of


def completion(model: str, turns: Sequence[Turn], vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """With logprobs where there is a vocabulary to spell them."""
    return {
        "id": turns[0].reply_id,
        "object": "chat.completion",
        "created": int(turns[0].created_at.timestamp()),
        "model": model,
        "system_fingerprint": turns[0].version,
        "conversation_id": turns[0].question.conversation_id,
        "choices": [
            {
                "index": index,
                "reply_id": turn.reply_id,
                "message": {"role": "assistant", "content": turn.text, "refusal": None},
                "logprobs": vocabulary and logprobs_of(vocabulary.content(turn.token_ids, turn.logprobs, turn.likely)),
                "finish_reason": turn.finish_reason,
            }
            for index, turn in enumerate(turns)
        ],
        "usage": usage_of_turns(turns),
    }


def usage_of_turns(turns: Sequence[Turn]) -> dict[str, Any]:
    """The prompt is counted once, however many replies it got."""
    first = turns[0]
    reply_tokens = sum(len(turn.token_ids) for turn in turns)
    return usage_of(len(first.question.prompt_token_ids), reply_tokens, first.cached_tokens)
