"""What a user may know and decide about their own data: whether it may train, what it taught, a copy of it, its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from sqlmodel import Session

from deploy import policies
from feedback import privacy
from feedback.ledger import ensure_user
from feedback.schema import User
from server import history
from server.identity import Scope
from server.openapi import body_of
from server.services import services_of
from server.shapes import shown
from server.shapes import users as shapes
from server.wire import parse, read_json

router = APIRouter(prefix="/v1/me", tags=["me"])


class ConsentBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, **shown({"consent": False})
    )
    consent: bool | None
    """Whether my votes may train; null: whatever the deployment's default is."""


@router.get("", response_model=shapes.Me)
async def me(request: Request) -> dict[str, Any]:
    """What the page's panel shows: my consent, and which policies learned from how many of my votes."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)

    def read(session: Session) -> dict[str, Any]:
        user = session.get(User, identity.user_id)
        return {
            "object": "user",
            "id": identity.user_id,
            "consent": None if user is None else user.consent,
            "default": services.settings.consent_default,
            "taught": [
                {"policy": taught.policy.version, "state": taught.policy.state, "votes": taught.votes}
                for taught in policies.taught_by(session, identity.user_id)
            ],
        }

    return await services.read(read)


@router.get("/export", response_model=shapes.Export)
async def export(request: Request) -> dict[str, Any]:
    """All that is stored about who asks: conversations, replies, and every revision of every vote."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)

    def read(session: Session) -> dict[str, Any]:
        user = session.get(User, identity.user_id)
        return {
            "consent": None if user is None else user.consent,
            **history.everything(session, identity.user_id),
        }

    return await services.read(read)


@router.put("/consent", response_model=shapes.Consent, openapi_extra=body_of(ConsentBody))
async def consent(request: Request) -> dict[str, Any]:
    """Whether one's votes may train, from the next run on."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    asked = parse(ConsentBody, await read_json(request, services.settings.max_body_bytes)).consent

    def write(session: Session) -> None:
        ensure_user(session, identity.user_id)
        user = session.get(User, identity.user_id)
        assert user is not None
        user.consent = asked
        session.add(user)

    await services.write(write)
    return {"consent": asked, "default": services.settings.consent_default}


@router.delete("", response_model=shapes.Erasure, responses={404: {"description": "Nobody has, or had, this id"}})
async def erase(request: Request) -> dict[str, Any]:
    """Erases who asks, for ever, and says which policies learned from them. A browser is a new user from then on.

    A reply that is being written meanwhile ends with an error, and leaves nothing. See docs/privacy.md.
    """
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    # Not through the ledger: an erasure is a transaction of its own, and what waits in the ledger comes after it.
    erased = await asyncio.to_thread(privacy.erase, services.store, services.settings.runs_folder, identity.user_id)
    request.state.identity = replace(identity, new_cookie=services.identities.parting(identity))
    return {
        "object": "erasure",
        "user": erased.user_id,
        "erased": {"conversations": erased.conversations, "replies": erased.replies, "votes": erased.votes},
        "policies": erased.policies,
    }
