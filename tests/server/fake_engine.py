"""An engine that does as it is told, for faults that a real one cannot be made to show at the right moment.

Its replies are counted words of a fixed length in tokens, so that half a reply is known when one is seen, or the text
that FAKE_SAYS has, cut anywhere. Probes are
answered from the manifest of the folder that was loaded, exactly, unless `lies` says otherwise.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from server.engine import Chunk, Sampling
from server.errors import EngineDead

REPLY_TOKENS = 12


class FakeEngine:
    def __init__(self, *, token_seconds: float = 0.002) -> None:
        self.token_seconds = token_seconds
        self.alive = False
        self.lies = False
        self.base = ""
        self.folders: dict[str, Path] = {}
        self.manifests: dict[str, Path] = {}  # of every adapter that was loaded; folded weights have none of their own
        self.running = 0
        self.starts = 0

    @property
    def healthy(self) -> bool:
        return self.alive and not (os.environ.get("FAKE_ENGINE_DEAD") and Path(os.environ["FAKE_ENGINE_DEAD"]).exists())

    @property
    def max_model_len(self) -> int:
        return 512

    async def start(self, version: str, folder: Path) -> None:
        self.starts += 1
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(folder)
        self.base, self.folders, self.alive = version, {version: folder}, True
        if dead := os.environ.get("FAKE_ENGINE_DEAD"):
            Path(dead).unlink(missing_ok=True)  # noqa: ASYNC240

    async def check(self, sampling: Sampling) -> None:
        pass

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        version: str,
        *,
        background: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        life = self.starts
        try:
            text = os.environ.get("FAKE_SAYS")
            words = (
                [f"word{at} " for at in range(REPLY_TOKENS)]
                if text is None
                else [text[at : at + 5] for at in range(0, len(text), 5)]
            )
            count = min(len(words), sampling.max_tokens)
            for at in range(count):
                await asyncio.sleep(self.token_seconds)
                if not self.healthy or life != self.starts:
                    raise EngineDead("the engine died")
                last = at == count - 1
                yield Chunk(words[at], [100 + at], [-0.5], "stop" if last else None)
        finally:
            self.running -= 1

    async def score(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], version: str) -> list[float]:
        folder = self.folders.get(version, Path("/nowhere"))
        manifest, folded = folder / "manifest.json", False
        if not manifest.is_file() and version in self.manifests:
            manifest, folded = self.manifests[version], True
        if manifest.is_file():
            for case in json.loads(manifest.read_bytes())["probe"]["cases"]:
                if case["prompt_token_ids"] == list(prompt_token_ids) and case["token_ids"] == list(token_ids):
                    lies = self.lies or (folded and "FAKE_FOLD_LIES" in os.environ)
                    key = "reference_logprobs" if lies else "logprobs"
                    return [float(value) for value in case[key]]
        return [-1.0] * len(token_ids)

    async def load_adapter(self, version: str, folder: Path) -> None:
        await asyncio.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
        self.folders[version] = folder
        self.manifests[version] = folder / "manifest.json"

    async def drop_adapter(self, version: str) -> None:
        self.folders.pop(version, None)

    async def swap_full(self, version: str, folder: Path) -> None:
        self.base, self.folders = version, {version: folder}

    async def reset_prefix_cache(self) -> None:
        pass

    async def close(self) -> None:
        self.alive = False
