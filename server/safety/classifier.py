"""A text classifier: how probable a label is for a text. Any transformers model for text classification.

It runs in one thread of its own, so that no stream stands still for it. Texts that come while it works wait and are
read together; each reply waits for one at a time, so no more wait than there are replies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy import classifiers
from deploy.errors import BadArtifact
from server import metrics
from server.errors import BadConfiguration, FilterFailed
from server.safety.config import ClassifierConfig

BATCH = 32


class Classifier:
    def __init__(self, config: ClassifierConfig, home: Path) -> None:
        """Loads the model, and tries it where its folder says what it must answer. Raises BadConfiguration."""
        self.config = config
        self._tokenizer, self._model, self._label = _load(config, home)
        self._waiting: list[tuple[str, asyncio.Future[float]]] = []
        self._working: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"safety-{config.name}")

    async def score(self, text: str) -> float:
        """How probable the label is, 0..1. Raises FilterFailed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        started = time.perf_counter()
        try:
            return float(await future)
        finally:
            metrics.safety_check_seconds.labels("classifier").observe(time.perf_counter() - started)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                scores = await loop.run_in_executor(self._thread, self.scores, [text for text, _ in batch])
            except Exception as error:  # isolates: a reply that cannot be checked fails, and the next is tried
                failure = FilterFailed(f"the classifier {self.config.name} failed: {type(error).__name__}")
                failure.__cause__ = error
                for _, future in batch:
                    if not future.done():
                        future.set_exception(failure)
                continue
            for (_, future), score in zip(batch, scores, strict=True):
                if not future.done():  # its reader may have gone
                    future.set_result(score)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Blocks. (B,)."""
        import torch

        with torch.inference_mode():
            batch = self._tokenizer(
                list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.config.max_tokens
            )
            batch.pop("token_type_ids", None)
            logits = self._model(**batch).logits.float()
            # A model with one label says yes or no by the sign of its logit.
            probabilities = logits.softmax(-1)[:, self._label] if logits.shape[1] > 1 else logits[:, 0].sigmoid()
            return [float(each) for each in probabilities]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _load(config: ClassifierConfig, home: Path) -> tuple[Any, Any, int]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    where = f"the safety filter's classifier {config.name!r}, model = {config.model!r}"
    own, manifest = home / "safety" / config.model, None
    folder = own if own.is_dir() else Path(config.model)
    try:
        if (folder / classifiers.MANIFEST_NAME).is_file():
            manifest = classifiers.verify(folder)
        disable_progress_bar()
        source = str(folder) if folder.is_dir() else config.model
        # As bidirectional models have it; and of a text that is too long, the end is what is new.
        tokenizer = AutoTokenizer.from_pretrained(source, truncation_side="left", padding_side="right")
        model = AutoModelForSequenceClassification.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
    except BadArtifact as error:
        raise BadConfiguration(f"{where}: {error}") from error
    except Exception as error:  # isolates: whatever transformers cannot load means the same to who starts the server
        raise BadConfiguration(
            f"{where}: neither in {home / 'safety'}, nor a folder or a name of a text classifier with safetensors "
            f"({type(error).__name__}: {error})"
        ) from error
    labels = {str(name): int(index) for index, name in model.config.id2label.items()}
    if config.label not in labels:
        raise BadConfiguration(f"{where} knows the labels {', '.join(sorted(labels))}, and not {config.label!r}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if manifest is not None:
        _prove(where, manifest, tokenizer, model)
    return tokenizer, model, labels[config.label]


def _prove(where: str, manifest: classifiers.Manifest, tokenizer: Any, model: Any) -> None:
    import torch

    index = {str(name): int(at) for at, name in model.config.id2label.items()}[manifest.probe.label]
    texts = [case.text for case in manifest.probe.cases]
    with torch.inference_mode():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.float()
    for case, found in zip(manifest.probe.cases, logits.softmax(-1)[:, index].tolist(), strict=True):
        if abs(found - case.probability) > manifest.probe.tolerance:
            raise BadConfiguration(
                f"{where}: it says {found:.3f} of a text of which it said {case.probability:.3f} when it was trained: "
                "train it again (`kudos safety train`)"
            )
