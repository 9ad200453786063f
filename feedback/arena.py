"""Chatbot Arena's battles, as FastChat's `clean_battle_data.py --mode conv_release` and the published data have them.

Each has `question_id`, `model_a`, `model_b`, `winner`, `judge`, `conversation_a` and `conversation_b` (messages as in
OpenAI's API), `anony`; later releases have `id` and `evaluation_session_id` instead, and parts of text as content. A is
left. Later turns are usually no comparison: each model had answered the earlier ones in its own way. Judges are kept as
digests, since they may be IP addresses.
"""

from typing import Any

from feedback.ballots import Ballot
from feedback.judgement import Judgement, Text, check_messages, digest_of, is_name, plain_text
from feedback.records import Problem, Record

SOURCE = "arena"
_CHOICES = {
    "model_a": "left",
    "model_b": "right",
    "tie": "tie",
    "tie (bothbad)": "both_bad",
    "both_bad": "both_bad",
}
_ROLES = ("system", "user", "assistant")


def parse_arena(record: Record) -> Judgement | Problem:
    try:
        return _parse(record)
    except ValueError as error:
        return Problem(record.number, str(error))


def _parse(record: Record) -> Judgement:
    value = record.value
    if not isinstance(value, dict):
        raise ValueError("not an object")
    question, judge = _named(value, "question_id", "id"), _named(value, "judge", "evaluation_session_id")
    choice = _CHOICES.get(str(value.get("winner")))
    if choice is None:
        raise ValueError(f"winner: must be one of {', '.join(_CHOICES)}, not {str(value.get('winner'))[:40]!r}")
    if value.get("anony") is False:
        raise ValueError("its judge saw the models' names")
    left, right = (_conversation(value, f"conversation_{side}") for side in "ab")
    if left[:-1] != right[:-1]:
        raise ValueError("the two dialogues differ before their last reply")
    if left[-1] == right[-1] and choice in ("left", "right"):
        raise ValueError("the two replies are the same")
    return Judgement(
        number=record.number,
        source=SOURCE,
        key=digest_of(question, judge, *(text["content"] for text in (*left, right[-1]))),
        user_id=f"arena-{digest_of(judge)}",
        consent=True,  # given with the arena's terms of use, under which these data are published
        messages=left[:-1],
        replies=(
            Text(left[-1]["content"], _model(value, "model_a")),
            Text(right[-1]["content"], _model(value, "model_b")),
        ),
        ballot=Ballot(choice=choice),
    )


def _named(value: dict[str, Any], *names: str) -> str:
    for name in names:
        if isinstance(value.get(name), str | int) and str(value[name]).strip():
            return str(value[name])
    raise ValueError(f"has no {' and no '.join(names)}")


def _model(value: dict[str, Any], name: str) -> str | None:
    return value[name] if is_name(value.get(name)) else None


def _conversation(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    given = value.get(name)
    if not isinstance(given, list):
        raise ValueError(f"{name}: no list of messages; the files without conversations cannot be learned from")
    messages = []
    for message in given:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"{name}: a message has no role among {', '.join(_ROLES)}")
        messages.append({"role": message["role"], "content": plain_text(message.get("content"))})
    check_messages(messages)
    return messages
