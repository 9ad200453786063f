"""A user's own conversations: list, read, rename, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session

from server import history
from server.api.replies import add_html
from server.identity import Scope
from server.openapi import body_of
from server.services import services_of
from server.shapes import shown
from server.shapes import users as shapes
from server.wire import parse, read_json

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


class Title(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, **shown({"title": "About tea"}))
    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


@router.get(
    "",
    response_model=shapes.Heads,
    responses={404: {"description": "`before` names no conversation of one's own"}},
)
async def conversations(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many.", examples=[20])] = 100,
    before: Annotated[str | None, Query(description="The id of the last one of the page before.")] = None,
    search: Annotated[str, Query(max_length=200, description="Words of the title, a question or an answer.")] = "",
) -> dict[str, Any]:
    """One's conversations, newest first; with `search` those that have the words, of which `before` is not asked."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    words = search.strip()

    def read(session: Session) -> list[dict[str, Any]]:
        if words:
            return history.found(session, identity.user_id, words, limit + 1)
        return history.listed(session, identity.user_id, limit + 1, before)

    found = await services.read(read)
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}


@router.get("/{conversation_id}", response_model=shapes.Conversation)
async def conversation(request: Request, conversation_id: str) -> dict[str, Any]:
    """A conversation with its replies, comparisons and one's votes on them, oldest first."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    found = await services.read(lambda session: history.whole(session, identity.user_id, conversation_id))
    await add_html(found["replies"])
    return found


@router.patch("/{conversation_id}", response_model=shapes.Head, openapi_extra=body_of(Title))
async def rename(request: Request, conversation_id: str) -> dict[str, Any]:
    """Gives a conversation another title."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    title = parse(Title, await read_json(request, services.settings.max_body_bytes)).title
    return await services.write(lambda session: history.rename(session, identity.user_id, conversation_id, title))


@router.delete("/{conversation_id}", response_model=shapes.Deleted)
async def delete(request: Request, conversation_id: str) -> dict[str, Any]:
    """Takes a conversation out of sight. Votes that were cast in it still count; to erase all, see DELETE /v1/me."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    await services.write(lambda session: history.delete(session, identity.user_id, conversation_id))
    return {"object": "conversation", "id": conversation_id, "deleted": True}
