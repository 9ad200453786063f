"""What one record of an imported file says: who judged which replies to which messages, and how."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from feedback.ballots import Ballot


@dataclass(frozen=True)
class Text:
    """A reply, and the model that wrote it, where the file names it."""

    text: str
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`key` makes the ids of its rows: what comes again has the same one."""

    number: int  # of the record
    source: str
    key: str
    user_id: str
    consent: bool | None  # None: the deployment's default holds
    messages: list[dict[str, Any]]
    replies: tuple[Text, ...]  # one that was judged, or the left and the right of a comparison
    ballot: Ballot
    conversation_key: str | None = None  # several judgements in one conversation share it

    @property
    def is_comparison(self) -> bool:
        return len(self.replies) == 2


def digest_of(*parts: str) -> str:
    """32 hexadecimal digits of SHA-256: enough that two never meet by chance."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_name(value: Any) -> TypeGuard[str]:
    """A text that both databases can hold, and that is one."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def check_messages(messages: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for what neither database can hold, and for what is no prompt and its reply."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("a dialogue does not end with a reply of the assistant")
    if not messages[-1]["content"].strip():
        raise ValueError("a last reply is empty")
    for message in messages:
        content = message["content"]
        if "\x00" in content or any("\ud800" <= char <= "\udfff" for char in content):
            raise ValueError("holds a NUL character or half of a surrogate pair")


def plain_text(content: Any) -> str:
    """The content of a message that is text, or parts of text alone. ValueError for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise ValueError("a message is not text alone")
