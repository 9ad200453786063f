"""Low-rank adapters: what they start as, what they merge to, and the files that an engine reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.models import make_backbone, read_whole
from trainer.backbone import ADAPTED, Backbone
from trainer.config import LoraConfig
from trainer.errors import OtherAdapter
from trainer.lora import LoraAdapter

CONFIG = LoraConfig(rank=3, alpha=12.0)
pytestmark = pytest.mark.usefixtures("one_thread")


def _trained(backbone: Backbone, seed: int = 1, first: int = 0) -> LoraAdapter:
    adapter = LoraAdapter(backbone, CONFIG, seed, first)
    generator = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.05, generator=generator)
    return adapter


@torch.no_grad()
def test_a_new_adapter_changes_nothing(backbone: Backbone) -> None:
    for name, weight in LoraAdapter(backbone, CONFIG, seed=0).merged().items():
        assert torch.equal(weight, backbone.weight(name))


def test_a_new_adapter_can_learn_and_its_seed_decides_its_start(backbone: Backbone) -> None:
    adapter = LoraAdapter(backbone, CONFIG, seed=0)
    batch = read_whole([[2, 3, 4]])
    hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, adapter.merged())
    hidden.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.b.values())
    assert all(parameter.any() for parameter in adapter.a.values())
    same, other = LoraAdapter(backbone, CONFIG, seed=0), LoraAdapter(backbone, CONFIG, seed=1)
    key = next(iter(adapter.a))
    assert torch.equal(adapter.a[key], same.a[key])
    assert not torch.equal(adapter.a[key], other.a[key])


@torch.no_grad()
def test_merged_is_the_weight_plus_scaled_b_a(backbone: Backbone) -> None:
    adapter = _trained(backbone)
    merged = adapter.merged()
    assert sorted(merged) == sorted(f"layers.{layer}.{linear}.weight" for layer in range(3) for linear in ADAPTED)
    for name, found in merged.items():
        key = name.removeprefix("layers.").removesuffix(".weight").replace(".", "/")
        expected = backbone.weight(name).double() + 12.0 / 3 * adapter.b[key].double() @ adapter.a[key].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        assert not torch.equal(found, backbone.weight(name))


@torch.no_grad()
def test_merged_weights_act_as_the_low_rank_path_beside_the_frozen_one(backbone: Backbone) -> None:
    adapter = _trained(backbone)
    x = torch.randn(5, backbone.hidden_size)
    name = "1.self_attn.q_proj"
    a, b = adapter.a[name.replace(".", "/")], adapter.b[name.replace(".", "/")]
    beside = x @ backbone.weight(f"layers.{name}.weight").T + adapter.scale * (x @ a.T) @ b.T
    torch.testing.assert_close(x @ adapter.merged()[f"layers.{name}.weight"].T, beside, rtol=1e-4, atol=1e-5)


def test_only_the_layers_from_first_on_are_adapted_and_the_frozen_weights_are_nobodys_parameters(
    backbone: Backbone,
) -> None:
    adapter = LoraAdapter(backbone, CONFIG, seed=0, first=2)
    assert {name.split(".")[1] for name in adapter.merged()} == {"2"}
    assert len(list(adapter.parameters())) == 2 * len(ADAPTED)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_files_round_trip_and_bear_the_names_that_an_engine_reads(family: str, tmp_path: Path) -> None:
    backbone = make_backbone(family)
    adapter = _trained(backbone)
    adapter.round_to_served()
    adapter.save_peft(tmp_path, base_name="the-base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(tensors) == sorted(
        f"base_model.model.model.layers.{layer}.{linear}.lora_{side}.weight"
        for layer in range(3)
        for linear in ADAPTED
        for side in "AB"
    )
    assert tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape == (3, 32)
    assert tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].shape == (48, 3)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 12.0, "none")
    assert set(config["target_modules"]) == {linear.split(".")[1] for linear in ADAPTED}

    loaded = LoraAdapter(backbone, CONFIG, seed=99)
    loaded.load_peft(tmp_path)
    for name, weight in adapter.merged().items():
        assert torch.equal(loaded.merged()[name], weight)


def test_rounding_to_what_is_served_is_idempotent_and_small(backbone: Backbone) -> None:
    adapter = _trained(backbone)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    adapter.round_to_served()
    once = [parameter.detach().clone() for parameter in adapter.parameters()]
    adapter.round_to_served()
    for exact, rounded, again in zip(before, once, adapter.parameters(), strict=True):
        assert torch.equal(rounded, again)
        assert torch.equal(rounded, rounded.bfloat16().float())
        torch.testing.assert_close(rounded, exact, rtol=2**-8, atol=0)


@pytest.mark.parametrize("other", [LoraConfig(rank=2, alpha=12.0), LoraConfig(rank=3, alpha=6.0)])
def test_an_adapter_of_other_settings_is_refused_by_name(backbone: Backbone, tmp_path: Path, other: LoraConfig) -> None:
    """Another alpha would load without a word, and act with another strength."""
    _trained(backbone).save_peft(tmp_path, "base")
    with pytest.raises(OtherAdapter, match="rank 3 and alpha 12") as caught:
        LoraAdapter(backbone, other, seed=0).load_peft(tmp_path)
    assert "set ppo.lora" in str(caught.value)


def test_an_adapter_of_other_layers_is_refused_by_name(backbone: Backbone, tmp_path: Path) -> None:
    _trained(backbone, first=backbone.depth - 1).save_peft(tmp_path, "base")
    with pytest.raises(OtherAdapter, match=f"adapters on 1 of {backbone.depth} layers") as caught:
        LoraAdapter(backbone, CONFIG, seed=0).load_peft(tmp_path)
    assert "set ppo.adapted_share to" in str(caught.value)


def test_merged_once_has_the_gradients_of_merging_each_time(backbone: Backbone) -> None:
    each_time, once = _trained(backbone), _trained(backbone)

    def loss(weights: dict[str, torch.Tensor], token: int) -> torch.Tensor:
        batch = read_whole([[2, token, 4]])
        hidden = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, weights)
        return hidden.float().square().mean()

    for token in (3, 5):
        loss(each_time.merged(), token).backward()  # type: ignore[no-untyped-call]
    with once.merged_once() as [weights]:
        for token in (3, 5):
            loss(weights, token).backward()  # type: ignore[no-untyped-call]
    for (name, expected), (_, found) in zip(each_time.named_parameters(), once.named_parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_merged_once_adds_small_gradients_up_in_fp32(backbone: Backbone) -> None:
    """In bf16 a thousandth added to one is lost, however often."""
    backbone.model.to(torch.bfloat16)
    adapter = _trained(backbone)
    with adapter.merged_once() as [weights]:
        name, weight = next(iter(weights.items()))
        for factor in (1.0, *[2**-10] * 64):
            (weight.sum() * factor).backward()  # type: ignore[no-untyped-call]
    key = name.removeprefix("layers.").removesuffix(".weight").replace(".", "/")
    expected_RI = adapter.scale * (1 + 64 * 2**-10) * adapter.b[key].sum(0)[:, None].expand_as(adapter.a[key])
    torch.testing.assert_close(adapter.a[key].grad, expected_RI, rtol=1e-4, atol=1e-6)
