"""A candidate in shadow: it answers a part of people's prompts in the background, and nobody sees what it says.

Its reply is written to the log when both it and the person's own reply have ended, as one row that is never streamed,
voted on, shown or trained on; beside the other it shows how the candidate would have served them. People come first:
the engine serves them before it, few such replies run at once, and none begins while the engine is busy.
"""

from __future__ import annotations

import logging
import random
from contextlib import aclosing

from sqlmodel import Session

from feedback.errors import FeedbackError
from feedback.ids import new_id
from feedback.packing import pack_ids
from feedback.refusals import refuses
from feedback.replies import append_shadow, storable
from feedback.schema import SHADOW, Reply, ReplyState, now
from server import metrics
from server.errors import EngineError
from server.services import Services
from server.turn import Turn

log = logging.getLogger("kudos.shadow")

_draw = random.SystemRandom()
_COMPARED = (ReplyState.COMPLETE, ReplyState.FAILED)
"""Ends of a person's reply that say something beside the shadow's; one that was stopped is shorter than it would be."""


def consider(services: Services, turn: Turn) -> None:
    """Begins a reply in shadow to what `turn` answers, if one is drawn and there is room for it."""
    version, settings = services.residency.wanted.shadow, services.settings
    if version is None or version not in services.residency.held or turn.version != services.residency.wanted.stable:
        return
    if turn.question.tools or turn.question.sampling.json_schema is not None:
        return
    if _draw.random() >= settings.shadow_share:
        return
    busy = services.streams.total() > settings.shadow_below_streams
    if busy or len(services.shadows) >= settings.max_shadow_streams:
        metrics.shadow_replies_total.labels("dropped").inc()
        return
    reply_id = new_id("shadow")
    services.shadows.add(reply_id)
    services.background(_answer(services, turn, version, reply_id))


async def _answer(services: Services, turn: Turn, version: str, reply_id: str) -> None:
    row = turn.row()
    row.id, row.regenerate_of, row.created_at, row.policy_version = reply_id, turn.reply_id, now(), version
    row.arm, row.source, row.propensity = SHADOW, SHADOW, services.settings.shadow_share
    epoch = services.residency.underway.enter(version)
    try:
        await _generate(services, turn, row)
    finally:
        services.shadows.discard(reply_id)
        row.mixed_versions = services.residency.underway.leave(version, epoch)
    await turn.over.wait()
    if services.draining or turn.ended_as not in _COMPARED:
        metrics.shadow_replies_total.labels("discarded").inc()
        return

    def append(session: Session) -> None:
        append_shadow(session, Reply(**row.model_dump()))

    try:
        await services.write(append)
    except FeedbackError as error:  # a database that is away costs the shadow's replies, and nobody else's
        log.warning("a reply in shadow was not kept: %s", error)
        metrics.shadow_replies_total.labels("discarded").inc()
        return
    metrics.shadow_replies_total.labels(row.state).inc()


async def _generate(services: Services, turn: Turn, row: Reply) -> None:
    """Into the row, which then is as if the reply had been a person's."""
    question, text, token_ids = turn.question, "", list[int]()
    generation = services.engine.generate(
        row.id, question.prompt_token_ids, question.sampling, row.policy_version, background=True
    )
    row.state = ReplyState.COMPLETE
    try:
        async with aclosing(generation) as chunks:
            async for chunk in chunks:
                row.first_token_at = row.first_token_at or now()
                text, row.finish_reason = text + chunk.text, chunk.finish_reason
                token_ids += chunk.token_ids
                if services.draining:
                    break
    except EngineError:
        row.state = ReplyState.FAILED
    row.finished_at, row.text, row.token_ids = now(), storable(text), pack_ids(token_ids)
    row.refused = refuses(row.text)
