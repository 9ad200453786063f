"""The safety filter's classifier: a head on a chat model's backbone that tells harmful replies from others.

It learns from replies that people flagged as harmful, beside replies that people voted on without flagging them, and
from examples that its caller brings (the built-in world has some). The upper layers learn with the head; embeddings
and lower layers stay the model's. What comes out is a plain folder of transformers, published with a manifest and a
probe (`deploy.classifiers`), so that the server loads it without any of this code. Not the reward model: that one says
what people like.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session
from torch.nn import functional as F

from deploy import classifiers
from feedback.samples import collect
from feedback.splits import Split
from trainer.intervals import wilson
from trainer.supervised import SupervisedConfig, plan_batches, rate_at

NAME, HARMFUL, HARMLESS = "harm", "harmful", "harmless"
_PROBED = 16
_TOLERANCE = 0.02  # of a probability, between two machines' numerics


class SafetyConfig(BaseModel):
    """How to train it. Frozen, and refused at parse time when out of bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(1e-3, gt=0, le=0.1)
    """Peak rate."""
    layers: float = Field(0.6, gt=0, le=1)
    """The share of the layers, counted from the top, that learn with the head."""
    batch_tokens: int = Field(1024, ge=16)
    epochs: int = Field(3, ge=1)
    max_tokens: int = Field(256, ge=8)
    """Of a text, the last so many."""
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Labelled:
    text: str
    harmful: bool
    of_people: bool = False  # flagged, or voted on and not flagged
    held_out: bool = False


@dataclass(frozen=True)
class Accuracy:
    """On texts that it has not seen. Rates at a threshold of one half; intervals are Wilson's, at 95 %."""

    texts: int
    harmful: int
    accuracy: float
    lower: float
    upper: float
    caught: float  # of the harmful ones
    false_alarms: float  # of the others


@dataclass(frozen=True)
class Trained:
    folder: Path
    steps: int
    seconds: float
    examples: int
    flagged: int  # replies that people flagged, among them
    held_out: Accuracy
    held_out_of_people: Accuracy | None  # None where nobody flagged any


def voted(session: Session, *, consent_default: bool, burst_votes_per_minute: int = 0) -> list[Labelled]:
    """Replies that people flagged, and at most four times as many that people voted on and did not flag."""
    samples = collect(session, consent_default=consent_default, burst_votes_per_minute=burst_votes_per_minute)
    by_reply: dict[str, Labelled] = {}
    for sample in samples.thumbs:
        before = by_reply.get(sample.reply_id)
        harmful = sample.harmful or (before is not None and before.harmful)
        by_reply[sample.reply_id] = Labelled(sample.text, harmful, True, sample.split is Split.HELD_OUT)
    flagged = [each for each in by_reply.values() if each.harmful]
    others = [each for each in by_reply.values() if not each.harmful]
    random.Random(0).shuffle(others)
    return [*flagged, *others[: 4 * len(flagged)]]


def train(
    base: Path,
    texts: Sequence[Labelled],
    root: Path,
    config: SafetyConfig,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train on the texts that are not held out, measure on the others, publish below `root`. Raises ValueError without
    both kinds on both sides."""
    learned = [each for each in texts if not each.held_out]
    held_out = [each for each in texts if each.held_out]
    for side, those in (("to learn from", learned), ("held out", held_out)):
        if len({each.harmful for each in those}) < 2:
            raise ValueError(f"there must be harmful and harmless texts {side}")
    torch.manual_seed(config.seed)
    tokenizer, model = _load(base, config)
    started = time.monotonic()
    steps = _fit(model, tokenizer, learned, config, on_step)
    people = [each for each in held_out if each.of_people]
    trained = Trained(
        folder=root,
        steps=steps,
        seconds=time.monotonic() - started,
        examples=len(learned),
        flagged=sum(each.of_people and each.harmful for each in texts),
        held_out=_measure(model, tokenizer, held_out, config),
        held_out_of_people=_measure(model, tokenizer, people, config) if any(e.harmful for e in people) else None,
    )
    # The probe is of the caller's examples: people's words stay where they can be erased.
    probed = [each.text for each in held_out if not each.of_people][:_PROBED] or ["Hello!", "I hate you."]
    figures = {name: value for name, value in asdict(trained).items() if name not in ("folder", "seconds")}
    draft = classifiers.Draft(
        name=NAME,
        probe=classifiers.Probe(
            label=HARMFUL,
            cases=[
                classifiers.Case(text=text, probability=score)
                for text, score in zip(probed, scores(model, tokenizer, probed, config.max_tokens), strict=True)
            ],
            tolerance=_TOLERANCE,
        ),
        training={"base": base.name, **config.model_dump(), **figures},
    )
    with tempfile.TemporaryDirectory() as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        folder = classifiers.publish(Path(staging), draft, root)
    return Trained(**{**trained.__dict__, "folder": folder})


@torch.inference_mode()
def scores(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, batch: int = 64) -> list[float]:
    """(B,): how probable it is that each text is harmful."""
    found: list[float] = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(
            list(texts[start : start + batch]),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_tokens,
        )
        inputs.pop("token_type_ids", None)
        found += model(**inputs).logits.float().softmax(-1)[:, 1].tolist()
    return found


def _load(base: Path, config: SafetyConfig) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()  # that the head is new is the point
    tokenizer = AutoTokenizer.from_pretrained(str(base), padding_side="right", truncation_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        str(base),
        num_labels=2,
        id2label={0: HARMLESS, 1: HARMFUL},
        label2id={HARMLESS: 0, HARMFUL: 1},
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    layers = model.base_model.layers
    learning = [model.base_model.norm, model.score, *layers[len(layers) - max(1, round(len(layers) * config.layers)) :]]
    model.requires_grad_(False)
    for module in learning:
        module.requires_grad_(True)
    return tokenizer, model


def _fit(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Labelled],
    config: SafetyConfig,
    on_step: Callable[[int, int, float], None] | None,
) -> int:
    ids = [tokenizer(each.text, truncation=True, max_length=config.max_tokens)["input_ids"] or [0] for each in texts]
    lengths = [len(each) for each in ids]
    batches = [
        batch
        for epoch in range(config.epochs)
        for batch in plan_batches(lengths, config.batch_tokens, random.Random(f"{config.seed}:{epoch}"))
    ]
    schedule = SupervisedConfig(learning_rate=config.learning_rate)
    # Harmful and harmless weigh the same in all, however many of each there are.
    share = sum(each.harmful for each in texts) / len(texts)
    weight_C = torch.tensor([0.5 / (1 - share), 0.5 / share])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.learning_rate)
    model.train()
    for step, batch in enumerate(batches):
        inputs = tokenizer.pad({"input_ids": [ids[each] for each in batch]}, return_tensors="pt")
        labels_B = torch.tensor([int(texts[each].harmful) for each in batch])
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, len(batches), schedule)
        loss = F.cross_entropy(model(**inputs).logits.float(), labels_B, weight=weight_C)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if on_step is not None:
            on_step(step + 1, len(batches), float(loss.detach()))
    model.eval()
    return len(batches)


def _measure(model: Any, tokenizer: Any, texts: Sequence[Labelled], config: SafetyConfig) -> Accuracy:
    said = [score >= 0.5 for score in scores(model, tokenizer, [each.text for each in texts], config.max_tokens)]
    pairs = list(zip(said, (each.harmful for each in texts), strict=True))
    right, harmful = sum(a == b for a, b in pairs), sum(b for _, b in pairs)
    lower, upper = wilson(float(right), len(pairs))
    caught, alarms = sum(a and b for a, b in pairs), sum(a and not b for a, b in pairs)
    return Accuracy(
        texts=len(pairs),
        harmful=harmful,
        accuracy=right / len(pairs),
        lower=lower,
        upper=upper,
        caught=caught / max(1, harmful),
        false_alarms=alarms / max(1, len(pairs) - harmful),
    )
