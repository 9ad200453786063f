"""Measures the real sampler in a process of its own, since an engine in this process would stay for the other tests.

    python -m tests.trainer.engine_worker MODEL_FOLDER

prints one JSON line with what test_sampler.py asserts.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.trainer.models import END
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.logprobs import score_logprobs
from trainer.lora import LoraAdapter
from trainer.sampler import Rollout, Sampler

TEMPERATURE = 0.7


@torch.no_grad()
def gap(backbone: Backbone, weights: dict[str, Tensor], rollouts: Sequence[Rollout]) -> float:
    """Mean absolute difference between the engine's logprobs and the trainer's under `weights`."""
    prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
    found = score_logprobs(backbone, prompts, replies, TEMPERATURE, weights)
    gaps = [abs(float(found[row, t]) - value) for row, r in enumerate(rollouts) for t, value in enumerate(r.logprobs)]
    return sum(gaps) / len(gaps)


def ids(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.reply for rollout in rollouts]


def main(folder: Path) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(5, 200) for _ in range(rng.randint(3, 40))] for _ in range(48)]
    backbone = Backbone.load(folder)
    adapter = LoraAdapter(backbone, LoraConfig(rank=4, alpha=8.0), seed=1)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        merged = adapter.merged()
    sampler = Sampler(folder, end_id=END, max_model_len=128)

    def sample(seed: int) -> list[Rollout]:
        return sampler.sample(prompts, max_tokens=24, temperature=TEMPERATURE, seed=seed)

    sampler.update(backbone, {})
    base, same, other = sample(1), sample(1), sample(2)
    sampler.update(backbone, merged)
    adapted = sample(1)
    sampler.update(backbone, {})
    returned = sample(1)
    print(
        json.dumps(
            {
                "base_gap": gap(backbone, {}, base),
                "adapted_gap": gap(backbone, merged, adapted),
                "adapted_gap_to_base": gap(backbone, {}, adapted),
                "base": ids(base),
                "same": ids(same),
                "other": ids(other),
                "adapted": ids(adapted),
                "returned": ids(returned),
                "same_logprobs": [r.logprobs for r in base] == [r.logprobs for r in same],
                "prompts_kept": [r.prompt for r in adapted] == prompts,
                "ends": [[r.ended, r.reply[-1] == END, len(r.reply)] for r in (*base, *other, *adapted)],
                "lengths_agree": all(len(r.reply) == len(r.logprobs) for r in base),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
