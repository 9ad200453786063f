"""A user's own conversations: list, read, rename, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session

from server import history
from server.api.replies import add_html
from server.identity import Scope
from server.services import services_of
from server.wire import parse, read_json

router = APIRouter(prefix="/v1/conversations")


class _Title(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


@router.get("")
async def conversations(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: str | None = None,
    search: Annotated[str, Query(max_length=200)] = "",
) -> dict[str, Any]:
    """Newest first. With `search`: those that have these words in their title, questions or answers."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    words = search.strip()

    def read(session: Session) -> list[dict[str, Any]]:
        if words:
            return history.found(session, identity.user_id, words, limit + 1)
        return history.listed(session, identity.user_id, limit + 1, before)

    found = await services.read(read)
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}


@router.get("/{conversation_id}")
async def conversation(request: Request, conversation_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    found = await services.read(lambda session: history.whole(session, identity.user_id, conversation_id))
    await add_html(found["replies"])
    return found


@router.patch("/{conversation_id}")
async def rename(request: Request, conversation_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    title = parse(_Title, await read_json(request, services.settings.max_body_bytes)).title
    return await services.write(lambda session: history.rename(session, identity.user_id, conversation_id, title))


@router.delete("/{conversation_id}")
async def delete(request: Request, conversation_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    await services.write(lambda session: history.delete(session, identity.user_id, conversation_id))
    return {"object": "conversation", "id": conversation_id, "deleted": True}
