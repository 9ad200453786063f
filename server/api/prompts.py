"""System prompts as versions, for operators: what there is, a new version, and who gets which."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from feedback.schema import PromptUse, PromptVersion
from feedback.system_prompts import (
    MAX_ARMS,
    MAX_CHARS,
    NAME,
    RESERVED,
    add_prompt,
    find_prompt,
    prompt_versions,
    set_use,
    uses,
)
from server.identity import Scope
from server.openapi import body_of
from server.services import services_of
from server.shapes import operators as shapes
from server.shapes import shown
from server.wire import parse, read_json

router = APIRouter(prefix="/v1/prompts", tags=["operators"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NewPrompt(_Body):
    model_config = shown({"name": "shop", "text": "You work in a shop. Answer in one sentence."})
    name: Annotated[str, Field(pattern=f"^{NAME}$", json_schema_extra={"not": {"const": RESERVED}})]
    text: Annotated[str, Field(max_length=MAX_CHARS, pattern=r"\S")]


class Arm(_Body):
    version: str
    """`name@number`, or a name for its newest version."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class Use(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"arms": [{"version": "shop@2"}, {"version": "shop@3", "weight": 2.0}], "key_id": None}],
            # null is what all others get, so all others cannot get it.
            "anyOf": [
                {"properties": {"arms": {"type": "array"}}},
                {"required": ["key_id"], "properties": {"key_id": {"type": "string"}}},
            ],
        }
    )
    arms: Annotated[list[Arm], Field(max_length=MAX_ARMS)] | None
    """Empty: no prompt. null, for a key: what all others get."""
    key_id: str | None = None
    """Whose users; null: all others."""


@router.get("", response_model=shapes.Prompts)
async def all_prompts(request: Request) -> dict[str, Any]:
    """Every version, and who gets which now."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> dict[str, Any]:
        found = prompt_versions(session)
        return {"data": [_version(each) for each in found], "uses": [_use(each) for each in uses(session)]}

    return {"object": "list", **await services.read(read)}


@router.post("", response_model=shapes.NewestPrompt, openapi_extra=body_of(NewPrompt))
async def new_prompt(request: Request) -> dict[str, Any]:
    """The next version of a name; where its newest version has this very text, that one."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    body = parse(NewPrompt, await read_json(request, services.settings.max_body_bytes))

    def write(session: Session) -> dict[str, Any]:
        made, new = add_prompt(session, name=body.name, text=body.text, actor=identity.actor)
        return {**_version(made), "new": new}

    return await services.write(write)


@router.get("/use", response_model=shapes.AllPromptsInUse)
async def prompts_in_use(request: Request) -> dict[str, Any]:
    """Who gets which now."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return {"object": "list", "data": await services.read(lambda session: [_use(each) for each in uses(session)])}


@router.put(
    "/use",
    response_model=shapes.PromptsInUse,
    openapi_extra=body_of(Use),
    responses={404: {"description": "There is no such prompt or key"}},
)
async def use_prompts(request: Request) -> dict[str, Any]:
    """Who gets which from now on, drawn by weight and the same for one user as long as this use lasts."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    body = parse(Use, await read_json(request, services.settings.max_body_bytes))
    arms = None if body.arms is None else [(arm.version, arm.weight) for arm in body.arms]
    used = await services.write(
        lambda session: _use(set_use(session, arms=arms, key_id=body.key_id, actor=identity.actor))
    )
    services.prompt_book.forget()
    return used


@router.get("/{version}", response_model=shapes.Prompt)
async def one_prompt(request: Request, version: str) -> dict[str, Any]:
    """One version: `name@number`, or a name for its newest."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return await services.read(lambda session: _version(find_prompt(session, version)))


def _version(row: PromptVersion) -> dict[str, Any]:
    return {"object": "prompt", **row.model_dump()}


def _use(row: PromptUse) -> dict[str, Any]:
    return {"object": "prompt.use", **row.model_dump(exclude={"salt", "id"})}  # who knows the salt can choose an arm
