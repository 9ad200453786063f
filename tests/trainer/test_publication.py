"""Publishing: the folder is one that deploy accepts, and its probe tells the policy from its base."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from deploy.artifacts import Published, verify
from deploy.digests import base_shapes
from deploy.manifest import Probe
from deploy.probe import probe_verdict
from feedback.schema import PolicyKind
from tests.trainer.models import TorchSampler, make_model_folder
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.lora import LoraAdapter
from trainer.publication import PROBE_CASES, publish_policy
from trainer.sampler import Rollout

Publish = Callable[[PolicyKind], Published]
LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def backbone(base: Path) -> Backbone:
    return Backbone.load(base)


@pytest.fixture(scope="module")
def policy(backbone: Backbone) -> LoraAdapter:
    adapter = LoraAdapter(backbone, LORA, seed=1)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    adapter.round_to_served()
    return adapter


@pytest.fixture(scope="module")
def rollouts(backbone: Backbone, policy: LoraAdapter) -> list[Rollout]:
    sampler = TorchSampler()
    sampler.update(backbone, policy.merged())
    return sampler.sample([[3, 10 + n, 20 + n, 4] for n in range(12)], max_tokens=8, temperature=1.0, seed=0)


@pytest.fixture
def publish(tmp_path: Path, base: Path, backbone: Backbone, policy: LoraAdapter, rollouts: list[Rollout]) -> Publish:
    return lambda kind: publish_policy(
        kind=kind,
        number=3,
        base_folder=base,
        backbone=backbone,
        policy=policy,
        rollouts=rollouts,
        training={"run_id": "run-1", "seed": 0},
        policies_folder=tmp_path / "policies",
    )


@torch.no_grad()
def _measured(model: torch.nn.Module, probe: Probe) -> list[list[float]]:
    """The probe's logprobs by transformers' own forward: another code path than the trainer's."""
    rows = []
    for case in probe.cases:
        logits = model(input_ids=torch.tensor([case.prompt_token_ids + case.token_ids])).logits[0].float()
        table = torch.log_softmax(logits, -1)
        start = len(case.prompt_token_ids) - 1
        rows.append([float(table[start + t, token]) for t, token in enumerate(case.token_ids)])
    return rows


def _model(base: Path, weights: dict[str, Tensor]) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.load_state_dict({f"model.{name}": w.detach() for name, w in weights.items()}, strict=False)
    return model.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [PolicyKind.ADAPTER, PolicyKind.FULL])
def test_what_is_published_is_what_deploy_accepts(
    kind: PolicyKind, tmp_path: Path, base: Path, publish: Publish
) -> None:
    died = tmp_path / "policies" / ".staging-3"
    died.mkdir(parents=True)
    (died / "half.safetensors").write_bytes(b"half")
    published = publish(kind)
    manifest = verify(published.path, base_shapes(base), digest=published.digest)
    assert manifest.kind is kind
    assert manifest.number == 3
    assert manifest.training == {"run_id": "run-1", "seed": 0}
    assert len(manifest.probe.cases) == PROBE_CASES
    names = set(manifest.files)
    if kind is PolicyKind.ADAPTER:
        assert names == {"adapter_model.safetensors", "adapter_config.json"}
        assert manifest.lora is not None
        assert (manifest.lora.rank, manifest.lora.alpha) == (4, 8.0)
    else:
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    left = [path.name for path in (tmp_path / "policies").iterdir() if path.is_dir()]
    assert left == [published.version], "no staging folder stays behind"


def test_the_probe_passes_for_the_policy_alone(
    base: Path, backbone: Backbone, policy: LoraAdapter, publish: Publish
) -> None:
    probe = publish(PolicyKind.ADAPTER).manifest.probe
    with torch.no_grad():
        merged = policy.merged()
        twice = {name: 2 * weight - backbone.weight(name) for name, weight in merged.items()}
    right = probe_verdict(probe, _measured(_model(base, merged), probe))
    assert right.passed, right.message
    assert right.dose == pytest.approx(1.0, abs=0.1)
    missing = probe_verdict(probe, _measured(_model(base, {}), probe))
    assert not missing.passed
    assert "not applied" in missing.message
    assert not probe_verdict(probe, _measured(_model(base, twice), probe)).passed


def test_the_probe_takes_the_replies_on_which_policy_and_base_differ_most(publish: Publish) -> None:
    probe = publish(PolicyKind.ADAPTER).manifest.probe

    def gap(logprobs: list[float], reference: list[float]) -> float:
        return sum(abs(a - b) for a, b in zip(logprobs, reference, strict=True)) / len(logprobs)

    gaps = [gap(case.logprobs, case.reference_logprobs) for case in probe.cases]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] > probe.tolerance_nats


def test_a_full_checkpoint_loads_in_transformers_and_gives_the_probes_logprobs(base: Path, publish: Publish) -> None:
    published = publish(PolicyKind.FULL)
    model = AutoModelForCausalLM.from_pretrained(published.path, dtype=torch.bfloat16).eval()
    verdict = probe_verdict(published.manifest.probe, _measured(model, published.manifest.probe))
    assert verdict.passed, verdict.message
    untouched = probe_verdict(published.manifest.probe, _measured(_model(base, {}), published.manifest.probe))
    assert not untouched.passed
    assert json.loads((published.path / "config.json").read_text())["model_type"] == "llama"


def test_the_same_policy_published_twice_is_one_policy(publish: Publish) -> None:
    first, second = (publish(PolicyKind.ADAPTER) for _ in range(2))
    assert first.version == second.version
