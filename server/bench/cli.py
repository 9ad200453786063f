"""The server's commands of `kudos bench`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register_bench(bench: typer.Typer) -> None:
    bench.command()(votes)
    bench.command()(serve)


def votes(
    seconds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 15,
    clients: Annotated[int, typer.Option(min=1, help="That vote, each its next vote when the last is durable.")] = 64,
    streams: Annotated[int, typer.Option(min=0, help="Chats beside the votes, in a second measurement.")] = 8,
) -> None:
    """Votes a second that are durable when they are acknowledged, over HTTP, alone and beside chats. One JSON line."""
    from server.bench.votes import measure
    from server.bench.wrk import need_wrk

    need_wrk()
    typer.echo(json.dumps(measure(seconds=seconds, clients=clients, streams=streams)))


def serve(
    streams: Annotated[int, typer.Option(min=1, help="Replies that are streamed at once: try 1, 16 and 64.")] = 16,
    mode: Annotated[
        str, typer.Option(help="plain, logprobs (asked of both), or both with a comma.")
    ] = "plain,logprobs",
    pairs: Annotated[int, typer.Option(min=1, help="How often each server is measured, in turn.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 6,
) -> None:
    """kudos against vLLM's own OpenAI server: requests a second, time to the first token. One JSON line."""
    from server.bench.serve import MODES, measure
    from server.bench.wrk import need_wrk

    modes = mode.split(",")
    if unknown := set(modes) - set(MODES):
        raise typer.BadParameter(f"{', '.join(unknown)}: choose of {', '.join(MODES)}")
    need_wrk()
    typer.echo(json.dumps(measure(streams=streams, modes=modes, pairs=pairs, seconds=seconds)))
