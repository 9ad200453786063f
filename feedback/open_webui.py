"""Open WebUI's feedback export: Admin Panel, Evaluations, Feedbacks, or `/api/v1/evaluations/feedbacks/all/export`.

An array of feedbacks, each with `data` (the rating 1 or −1, a reason, a comment, in `details` a rating of 1 to 10),
`meta` (which message) and `snapshot.chat` (the chat as it was). The messages are a tree: a reply's prompt is the way to
its root. A feedback that was changed since is a changed vote. Which replies stood beside it does not say that anyone
compared them, so all of them are thumbs. Its users have not been asked whether they agree: the default speaks for them.
"""

from typing import Any

from feedback.ballots import Ballot
from feedback.errors import BadBallot
from feedback.judgement import Judgement, Text, check_messages, digest_of, is_name, plain_text
from feedback.records import Problem, Record

SOURCE = "open-webui"
_THUMBS = {"1": "up", "-1": "down"}
_MOST = 10  # the highest of the ratings in `details`, which begin at 1


def parse_open_webui(record: Record) -> Judgement | Problem:
    try:
        return _parse(record)
    except (ValueError, BadBallot) as error:
        return Problem(record.number, str(error))


def _parse(record: Record) -> Judgement:
    value = record.value
    if not isinstance(value, dict):
        raise ValueError("not an object")
    feedback_id, user_id = value.get("id"), value.get("user_id")
    if not (is_name(feedback_id) and is_name(user_id)):
        raise ValueError("has no id or no user_id")
    if value.get("type") != "rating":
        raise ValueError(f"type: must be rating, not {str(value.get('type'))[:40]!r}")
    data, meta = _object(value.get("data")), _object(value.get("meta"))
    thumb = _THUMBS.get(str(data.get("rating")))
    if thumb is None:
        raise ValueError(f"data.rating: must be 1 or -1, not {str(data.get('rating'))[:40]!r}")
    chat = _object(_object(_object(value.get("snapshot")).get("chat")).get("chat"))
    if not chat:
        raise ValueError("has no snapshot of its chat: use the export, not the list of feedbacks")
    messages = _system(chat) + _way_to(chat, meta.get("message_id"))
    check_messages(messages)
    model = data.get("model_id") or meta.get("model_id")
    return Judgement(
        number=record.number,
        source=SOURCE,
        key=digest_of(feedback_id),
        conversation_key=digest_of(user_id, str(meta.get("chat_id") or feedback_id)),
        user_id=f"{SOURCE}/{user_id}",
        consent=None,
        messages=messages[:-1],
        replies=(Text(messages[-1]["content"], model if is_name(model) else None),),
        ballot=Ballot(
            thumb=thumb,
            rating=_rating(_object(data.get("details")).get("rating")),
            reasons=[reason] if (reason := data.get("reason")) and isinstance(reason, str) else [],
            comment=data.get("comment"),
        ),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rating(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MOST:
        return None
    return (value - 1) / (_MOST - 1)


def _system(chat: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = _object(chat.get("params")).get("system")
    return [{"role": "system", "content": prompt}] if isinstance(prompt, str) and prompt.strip() else []


def _way_to(chat: dict[str, Any], message_id: Any) -> list[dict[str, Any]]:
    """The messages from the first to the one that was judged."""
    tree = _object(_object(chat.get("history")).get("messages"))
    if not tree:  # older snapshots have the shown messages alone
        shown = [_object(message) for message in chat.get("messages") or []]
        ids = [message.get("id") for message in shown]
        tree = {str(each["id"]): {**each, "parentId": before} for each, before in zip(shown, [None, *ids], strict=False)
                if each.get("id")}  # fmt: skip
    way: list[dict[str, Any]] = []
    at = message_id
    while at is not None:
        message = _object(tree.get(str(at)))
        if not message:
            raise ValueError(f"its chat has no message {str(at)[:80]!r}")
        if len(way) > len(tree):
            raise ValueError("its chat's messages go round in a circle")
        if message.get("files"):
            raise ValueError("a message is not text alone")
        if message.get("role") not in ("user", "assistant", "system"):
            raise ValueError("a message has no role among user, assistant, system")
        way.append({"role": message["role"], "content": plain_text(message.get("content"))})
        at = message.get("parentId")
    if not way:
        raise ValueError("meta.message_id: does not say what was judged")
    return way[::-1]
