"""GET /v1/replies/{id}: a user's own reply as it is kept, as text and, for a page, as HTML.

Only stored replies are rendered, and only those of the one who asks: there is no way to have any other text rendered.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request

from feedback.schema import ReplyState
from server import history, markdown
from server.identity import Scope
from server.services import services_of
from server.shapes import users as shapes

router = APIRouter(prefix="/v1/replies", tags=["conversations"])

MAX_CHARS_AT_ONCE = 100_000
"""Of one conversation's replies, the newest are rendered up to here; those before them come as text alone."""

# One thread for all: however many ask, the streams share the interpreter with one rendering, and the database's
# threads stay free. Each reply is a turn of its own, so that a long conversation does not make a short one wait.
_RENDERING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="markdown")


@router.get("/{reply_id}", response_model=shapes.OneReply)
async def reply(request: Request, reply_id: str) -> dict[str, Any]:
    """One reply as it is kept: also one that is still being written, and one whose stream broke off."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    found = await services.read(lambda session: history.one(session, identity.user_id, reply_id))
    await add_html([found])
    return found


async def add_html(replies: list[dict[str, Any]]) -> None:
    """Gives each reply its `html`: None while it is being written, and for what stays plain text. Oldest first."""

    loop = asyncio.get_running_loop()
    room = MAX_CHARS_AT_ONCE
    for reply in reversed(replies):
        text = reply["text"]
        room -= len(text)
        wanted = reply["state"] != ReplyState.STREAMING and room >= 0
        reply["html"] = await loop.run_in_executor(_RENDERING, markdown.to_html, text) if wanted else None
