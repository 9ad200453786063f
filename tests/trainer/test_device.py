"""Training on a GPU is training on a CPU, faster. What needs a GPU is skipped where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import trainer.device
from tests.trainer.models import END, FAMILIES, TorchSampler, causal_lm, make_backbone, make_model_folder
from tests.trainer.test_ppo import CONFIG, LORA, PROMPTS, make_ppo
from tests.trainer.test_reward_model import CONFIG as MEMBERS
from tests.trainer.test_reward_model import _pairs, _thumbs
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.config import TrainingConfig
from trainer.device import passes, pick_device
from trainer.errors import NoSuchDevice
from trainer.logprobs import reply_logprobs, score_logprobs
from trainer.lora import LoraAdapter
from trainer.ppo import Ppo
from trainer.reward_model import fit
from trainer.sampler import Rollout
from trainer.trainable import FullWeights
from trainer.transformers_sampler import TransformersSampler

pytestmark = pytest.mark.usefixtures("one_thread")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
REPLIES = [[11 + row % 9, 20 + row % 7, 30 + row % 11, END][row % 3 :] for row in range(len(PROMPTS))]


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert pick_device(TrainingConfig().device) == torch.device(expected)


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoSuchDevice, match="finds no GPU: set device to cpu or auto"):
        pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_a_gpu_takes_more_at_once() -> None:
    cpu, gpu = passes(torch.device("cpu")), passes(torch.device("cuda"))
    assert all(more > less for more, less in zip(gpu, cpu, strict=True))


def _both(family: str = "llama", **config: int) -> tuple[Backbone, Backbone]:
    return tuple(Backbone(causal_lm(family, **config).to(device)) for device in ("cpu", "cuda"))  # type: ignore[return-value]


@needs_gpu
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_those_of_the_cpu(family: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.device, "GPU", trainer.device.GPU._replace(table_numbers=64 * 48))  # several pieces
    found = []
    for backbone in _both(family):
        learner = FullWeights(backbone) if full else LoraAdapter(backbone, LORA, seed=1)
        if isinstance(learner, LoraAdapter):
            with torch.no_grad():
                for each in learner.b.values():
                    each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(2)) / 10)
        batch = Batch.of(PROMPTS * 8, REPLIES * 8, backbone.device)
        with learner.merged_once(1) as (weights,):
            hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
            logprobs_BR = reply_logprobs(backbone, hidden, batch, 0.7, weights)
            (
                logprobs_BR * torch.linspace(-1, 1, logprobs_BR.numel(), device=batch.device).view_as(logprobs_BR)
            ).sum().backward()
        gradients = [each.grad.cpu() for each in learner.parameters() if each.grad is not None]
        assert len(gradients) == len(list(learner.parameters()))
        found.append((logprobs_BR.detach().cpu(), gradients, score_logprobs(backbone, PROMPTS, REPLIES, 0.7)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=2e-4)


class Recorded:
    """Replies that one engine gave, again, so that two trainings see the same."""

    def __init__(self) -> None:
        self.engine, self.at = TorchSampler(), 0
        self.said: list[list[Rollout]] = []

    def update(self, backbone: Backbone, weights: dict[str, torch.Tensor]) -> None:
        if self.at == len(self.said):
            self.engine.update(backbone, weights)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Rollout]:
        if self.at == len(self.said):
            self.said.append(self.engine.sample(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed))
        self.at += 1
        return self.said[self.at - 1]


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"critic": "head", "adapted_share": 0.5}, {"method": "full"}, {"algorithm": "rloo", "replies_per_prompt": 4}],
    ids=["adapters", "head and upper layers", "full", "rloo"],
)
def test_a_gpu_learns_what_a_cpu_learns(changes: dict[str, object]) -> None:
    sampler = Recorded()
    trained: list[Ppo] = []
    for backbone in _both(num_hidden_layers=2):
        sampler.at = 0
        ppo = make_ppo(backbone, sampler=sampler, sampler_gap_nats=10.0, learning_rate=1e-3, **changes)  # type: ignore[arg-type]
        steps = [ppo.step() for _ in range(3)]
        trained.append(ppo)
    assert all(each.device.type == "cuda" for each in ppo.policy.parameters())
    assert steps[-1].kl_nats != 0
    start = make_ppo(make_backbone(num_hidden_layers=2), **changes).policy  # type: ignore[arg-type]
    ours, theirs, before = (_flat(each) for each in (trained[0].policy, trained[1].policy, start))
    # Adam divides by the size of a gradient, so a gradient near zero turns rounding into whole steps.
    assert float((ours - theirs).norm() / (ours - before).norm()) < 0.02


def _flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().cpu().flatten() for each in module.parameters()])


@needs_gpu
def test_a_reward_model_fitted_on_a_gpu_says_the_same() -> None:
    examples = _pairs(200, 1) + _thumbs(100, 2)
    prompts, replies = PROMPTS, REPLIES
    scores = []
    for backbone in _both():
        model, _ = fit(backbone, examples, MEMBERS, 0)
        model.standardise(prompts, replies)
        scores.append(model.score(prompts, replies).mean(0))
        assert scores[-1].device.type == "cpu"
    correlation = float(torch.corrcoef(torch.stack(scores))[0, 1])
    assert correlation > 0.99


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replies_from_a_gpu_have_the_logprobs_that_the_trainer_computes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, device = make_model_folder(tmp_path / "model"), torch.device("cuda")
    backbone = Backbone.load(folder, dtype, device)
    sampler = TransformersSampler(folder, end_id=END, max_model_len=64, dtype=dtype, device=device)
    sampler.update(backbone, {})
    rollouts = sampler.sample(PROMPTS, max_tokens=12, temperature=0.7, seed=1)
    assert rollouts == sampler.sample(PROMPTS, max_tokens=12, temperature=0.7, seed=1)
    found_BR = score_logprobs(backbone, [r.prompt for r in rollouts], [r.reply for r in rollouts], 0.7)
    gaps = [abs(float(found_BR[row, t]) - said) for row, r in enumerate(rollouts) for t, said in enumerate(r.logprobs)]
    assert sum(gaps) / len(gaps) < (1e-5 if dtype is torch.float32 else CONFIG.sampler_gap_nats)
