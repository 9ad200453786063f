"""The supervised stage: a causal language model learns replies, by cross-entropy on the assistant's tokens alone.

Generic over any Hugging Face causal LM. It trains kudos-tiny from nothing, and corrections that users wrote on top
of an existing policy. Knows nothing of where dialogues come from. Not here: adapters (a caller that freezes
parameters trains the others), distributed training.

Shapes: B dialogues, T tokens of the longest of them, R reply tokens in the batch, D hidden width, V vocabulary.
Batches hold dialogues of like length, padded on the right. No attention mask is needed: attention is causal, so
no real token ever sees the padding, and padding is never scored.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

TokenisedDialogue = tuple[Sequence[int], Sequence[int]]  # ids, and which of them are the assistant's (0 or 1)


class SupervisedConfig(BaseModel):
    """How to train. Frozen, and refused at parse time when out of bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of the layers' matrices (embeddings and norms stay with AdamW): from scratch it
    needs about half of the tokens. To refine a trained model, take adamw."""
    learning_rate: float = Field(2e-3, gt=0, le=0.1)
    """Peak rate. From scratch 2e-3 to 3e-3 for a few million parameters, for corrections 1e-4 or less."""
    minimum_rate_share: float = Field(0.05, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    warmup_steps: int = Field(60, ge=0)
    """Steps of linear warm-up; shortened to a tenth of a short run."""
    weight_decay: float = Field(0.05, ge=0, le=1)
    """On matrices; never on norms and biases."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    batch_tokens: int = Field(3072, ge=16)
    """Tokens in a batch, padding included."""
    epochs: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    """Orders the dialogues. Same seed, model, data, machine and thread count: the same weights, bit for bit."""
    bfloat16: bool = True
    """Matrix products in bfloat16 (autocast), weights and optimiser in float32."""
    pad_id: int = Field(0, ge=0)


@dataclass(frozen=True)
class Step:
    """One optimiser step, as told to `on_step`. loss is nats per reply token."""

    index: int
    total: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Summary:
    """What a run did. final_loss is the mean over the last twentieth of the steps."""

    steps: int
    dialogues: int
    tokens: int
    reply_tokens: int
    first_loss: float
    final_loss: float
    seconds: float


def plan_batches(lengths: Sequence[int], batch_tokens: int, rng: random.Random) -> list[list[int]]:
    """Indices of dialogues, batch by batch: like lengths together, each batch within `batch_tokens`, in random order.

    A dialogue longer than `batch_tokens` gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], rng.random()))
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in order:
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(index)
    if batch:
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def collate(dialogues: Sequence[TokenisedDialogue], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT, and scored_BT: which tokens are predicted (the assistant's; never the first, which follows nothing)."""
    longest = max(len(ids) for ids, _ in dialogues)
    ids_BT = torch.full((len(dialogues), longest), pad_id, dtype=torch.long)
    scored_BT = torch.zeros((len(dialogues), longest), dtype=torch.bool)
    for row, (ids, mask) in enumerate(dialogues):
        ids_BT[row, : len(ids)] = torch.tensor(list(ids), dtype=torch.long)
        scored_BT[row, : len(ids)] = torch.tensor(list(mask), dtype=torch.bool)
    scored_BT[:, 0] = False
    return ids_BT, scored_BT


def reply_loss(model: Any, ids_BT: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """Mean nats per scored token. The vocabulary's logits are computed at scored places only: they are most of the
    work of a small model."""
    hidden_BTD = model.base_model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    chosen_BT = scored_BT[:, 1:]
    logits_RV = model.get_output_embeddings()(hidden_BTD[chosen_BT])
    return F.cross_entropy(logits_RV.float(), ids_BT[:, 1:][chosen_BT])


def rate_at(step: int, total: int, config: SupervisedConfig) -> float:
    """Linear warm-up, then a cosine down to `minimum_rate_share` of the peak."""
    warmup = min(config.warmup_steps, total // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    floor = config.minimum_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def _optimisers(model: Any, config: SupervisedConfig) -> list[torch.optim.Optimizer]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train")
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    vectors = [each for _, each in named if each.dim() != 2]
    tables = [each for _, each in named if each.dim() == 2 and id(each) in embeddings]
    matrices = [each for _, each in named if each.dim() == 2 and id(each) not in embeddings]
    plain = [{"params": vectors, "weight_decay": 0.0}, {"params": tables, "weight_decay": config.weight_decay}]
    rate, decay = config.learning_rate, config.weight_decay
    optimisers: list[torch.optim.Optimizer] = []
    if config.optimiser == "muon" and matrices:
        # Updates scaled to the size of AdamW's, so that one learning rate serves both.
        optimisers.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    else:
        plain.append({"params": matrices, "weight_decay": decay})
    filled = [group for group in plain if group["params"]]
    if filled:
        optimisers.append(torch.optim.AdamW(filled, lr=rate, betas=(0.9, 0.95), fused=True))
    return optimisers


def _epochs(lengths: Sequence[int], config: SupervisedConfig) -> Iterator[list[int]]:
    for epoch in range(config.epochs):
        yield from plan_batches(lengths, config.batch_tokens, random.Random(f"{config.seed}:{epoch}"))


def train_supervised(
    model: Any,
    dialogues: Sequence[TokenisedDialogue],
    config: SupervisedConfig,
    on_step: Callable[[Step], None] | None = None,
) -> Summary:
    """Train `model` in place. Raises ValueError on no dialogue, or where a dialogue has no reply token."""
    if not dialogues:
        raise ValueError("there are no dialogues to train on")
    for index, (_, mask) in enumerate(dialogues):
        if not any(mask[1:]):
            raise ValueError(f"dialogue {index} has no assistant token to learn")
    batches = list(_epochs([len(ids) for ids, _ in dialogues], config))
    optimisers = _optimisers(model, config)
    device = next(model.parameters()).device
    losses: list[float] = []
    tokens = reply_tokens = 0
    started = time.monotonic()
    model.train()
    for index, batch in enumerate(batches):
        ids_BT, scored_BT = collate([dialogues[each] for each in batch], config.pad_id)
        rate = rate_at(index, len(batches), config)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bfloat16):
            loss = reply_loss(model, ids_BT.to(device), scored_BT.to(device))
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for optimiser in optimisers:
            optimiser.step()

        losses.append(float(loss.detach()))
        tokens += sum(len(dialogues[each][0]) for each in batch)
        reply_tokens += int(scored_BT.sum())
        if on_step is not None:
            seconds = time.monotonic() - started
            left = seconds / (index + 1) * (len(batches) - index - 1)
            on_step(Step(index + 1, len(batches), losses[-1], rate, float(norm), tokens / seconds, left))
    model.eval()
    tail = losses[-max(1, len(losses) // 20) :]
    seconds = time.monotonic() - started
    return Summary(len(losses), len(dialogues), tokens, reply_tokens, losses[0], sum(tail) / len(tail), seconds)
