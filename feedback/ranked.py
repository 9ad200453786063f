"""Rankings of several replies to one prompt, from the best to the worst; replies in one list are as good as each other:

    {"messages": [{"role": "user", "content": "..."}], "ranking": ["best", ["next", "as good"], "worst"], "user": "ada"}

The log knows choices between two replies, so a ranking is all of its pairs, in one conversation. Pairs of one person on
one prompt that share replies are learned from as what they are (`trainer.rankings`). Without a `user` the voter is
synthetic, one for each opening question, as for HH-RLHF.
"""

from itertools import combinations
from typing import Any

from feedback.ballots import Ballot
from feedback.judgement import Judgement, Text, check_messages, digest_of, is_name, plain_text
from feedback.records import Problem, Record

SOURCE = "ranking"
MOST_REPLIES = 16
_ROLES = ("system", "user", "assistant")


def parse_ranking(record: Record) -> list[Judgement] | Problem:
    try:
        return _parse(record)
    except ValueError as error:
        return Problem(record.number, str(error))


def _parse(record: Record) -> list[Judgement]:
    value = record.value
    if not isinstance(value, dict):
        raise ValueError("not an object")
    messages, ranked = _messages(value.get("messages")), _ranked(value.get("ranking"))
    user = value.get("user")
    if user is not None and not is_name(user):
        raise ValueError("user: not a name")
    for text, _ in ranked:
        check_messages([*messages, {"role": "assistant", "content": text}])
    whole = digest_of(
        str(user), *(turn["content"] for turn in messages), *(f"{place}\x00{text}" for text, place in ranked)
    )
    found = []
    for pair in combinations(ranked, 2):
        key = digest_of(whole, *(text for text, _ in pair))
        (left, above), (right, below) = pair if int(key[-1], 16) % 2 == 0 else pair[::-1]
        found.append(
            Judgement(
                number=record.number,
                source=SOURCE,
                key=key,
                user_id=f"ranking-{user or digest_of(messages[0]['content'])}",
                consent=True if user is None else None,
                messages=messages,
                replies=(Text(left), Text(right)),
                ballot=Ballot(choice="tie" if above == below else "left" if above < below else "right"),
                conversation_key=whole,
            )
        )
    return found


def _messages(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise ValueError("messages: no list of messages")
    messages = []
    for message in given:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"messages: one has no role among {', '.join(_ROLES)}")
        messages.append({"role": message["role"], "content": plain_text(message.get("content"))})
    if messages[-1]["role"] != "user":
        raise ValueError("messages: the last one must be the user's, to which the replies answer")
    return messages


def _ranked(given: Any) -> list[tuple[str, int]]:
    """Each reply with its place."""
    groups = [each if isinstance(each, list) else [each] for each in given] if isinstance(given, list) else []
    found = [(text, place) for place, group in enumerate(groups) for text in group]
    if not all(isinstance(text, str) for text, _ in found) or not 2 <= len(found) <= MOST_REPLIES:
        raise ValueError(f"ranking: must be 2 to {MOST_REPLIES} texts, best first, those that are as good in a list")
    if len({text for text, _ in found}) < len(found):
        raise ValueError("ranking: the same text twice")
    return found
