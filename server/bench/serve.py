"""kudos against vLLM's own OpenAI server: requests a second and the time to the first token, in turn, in pairs.

Both run at once, each idle while the other is measured: the same model, engine flags, adapters enabled, one thread that
computes. Replies are greedy, so both write the same ones, and streamed. kudos logs every reply durably with its
sampled logprobs, whoever asks; vLLM's server computes logprobs only where the client asks for them. So there are two
comparisons: `plain`, where nobody asks and kudos does more, and `logprobs`, where both send them.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.bench.processes import free_port, kudos, running
from server.bench.wrk import SCRIPTS, Wrk
from server.settings import Settings
from server.vllm_engine import ADAPTED

MODEL = "kudos-tiny"
MODES = {"plain": "", "logprobs": ',"logprobs":true'}
_FIELDS = ',"max_tokens":64,"temperature":0'
_WARM_SECONDS = 3
_FIRST_TOKENS_SECONDS = 2


def measure(*, streams: int, modes: Sequence[str], pairs: int, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kudos-serve-") as folder:
        home = Path(folder)
        with kudos(home) as ours, _vllm(home) as theirs:
            key = (home / "operator.key").read_text().strip()
            servers = {"kudos": _Server(ours, key), "vllm": _Server(theirs, None)}
            return {"streams": streams, "pairs": pairs} | {
                mode: _compare(servers, _FIELDS + MODES[mode], streams, pairs, seconds) for mode in modes
            }


@contextmanager
def _vllm(home: Path) -> Iterator[str]:
    """With what `server.vllm_engine` gives its engine, as flags."""
    settings, port = Settings(home=home), free_port()
    arguments = {
        "model": str(settings.model_folder()),
        "served-model-name": MODEL,
        "host": "127.0.0.1",
        "port": str(port),
        "max-loras": str(settings.max_loras),
        "max-cpu-loras": str(2 * settings.max_loras),
        "max-lora-rank": str(settings.max_lora_rank),
        "logprobs-mode": "processed_logprobs",
        "generation-config": "vllm",
        "uvicorn-log-level": "warning",
    }
    flags = ["--enforce-eager", "--enable-lora", "--enable-prefix-caching", "--no-enable-chunked-prefill"]
    environment = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_PLUGINS": "",  # as it is without kudos: what kudos mends in it on a CPU is kudos' part
    }
    with running(
        "vllm.entrypoints.openai.api_server",
        [each for name, value in arguments.items() for each in (f"--{name}", value)]
        + [*flags, "--disable-uvicorn-access-log", "--lora-target-modules", *ADAPTED],
        port=port,
        health="/health",
        log=home / "vllm.log",
        environment=environment,
    ) as address:
        yield address


class _Server:
    def __init__(self, address: str, key: str | None) -> None:
        self._address, self._key = address, key

    def requests(self, fields: str, streams: int, seconds: int) -> dict[str, Any]:
        environment = {"MODEL": MODEL, "FIELDS": fields, "COMMON": str(SCRIPTS / "common.lua")}
        if self._key is not None:
            environment["KEY"] = self._key
        said = Wrk("chat.lua", self._address, connections=streams, seconds=seconds, environment=environment).result()
        if said["refused"] or said["broken"] or not said["requests"]:
            raise RuntimeError(f"{self._address}: {said}")
        return said

    def first_tokens(self, fields: str, streams: int, seconds: int) -> list[float]:
        """Seconds from a request to the first event that holds text; wrk knows only when a reply is whole."""
        return asyncio.run(self._first_tokens(fields, streams, seconds))

    async def _first_tokens(self, fields: str, streams: int, seconds: int) -> list[float]:
        found: list[float] = []
        until = time.perf_counter() + seconds

        async def reader() -> None:
            where = urlsplit(self._address)
            receive, send = await asyncio.open_connection(where.hostname, where.port)
            body = f'{{"model":"{MODEL}","stream":true,"messages":[{{"role":"user","content":"hello"}}]{fields}}}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
            key = "" if self._key is None else f"authorization: Bearer {self._key}\r\n"
            request = f"{head}{key}content-length: {len(body)}\r\n\r\n{body}".encode()
            while (started := time.perf_counter()) < until:
                send.write(request)
                said = b""
                while b'"content":"' not in said.replace(b'"content":""', b""):
                    said += await receive.read(65536)
                found.append(time.perf_counter() - started)
                while not said.endswith(b"0\r\n\r\n"):
                    said = said[-16:] + await receive.read(65536)
            send.close()

        await asyncio.gather(*(reader() for _ in range(streams)))
        return found


def _compare(servers: dict[str, _Server], fields: str, streams: int, pairs: int, seconds: int) -> dict[str, Any]:
    for server in servers.values():
        server.requests(fields, streams, _WARM_SECONDS)
    rates: dict[str, list[float]] = {name: [] for name in servers}
    latencies: dict[str, list[float]] = {name: [] for name in servers}
    waits: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(pairs):
        for name in sorted(servers, reverse=number % 2 == 1):  # each goes first as often as second
            said = servers[name].requests(fields, streams, seconds)
            rates[name].append(said["requests"] / said["seconds"])
            latencies[name].append(said["p99_ms"])
            waits[name] += servers[name].first_tokens(fields, streams, _FIRST_TOKENS_SECONDS)
    ratios = [ours / theirs for ours, theirs in zip(rates["kudos"], rates["vllm"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{
            name: {
                "requests_per_second": round(statistics.median(rates[name]), 2),
                "p99_ms": round(statistics.median(latencies[name]), 1),
                "first_token_p50_ms": round(statistics.median(waits[name]) * 1e3, 1),
            }
            for name in servers
        },
    }
