"""vLLM's norm by its kernel for CPUs against its own layer in six operations of torch."""

from importlib.metadata import entry_points

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from server.cpu_norm import rms_norm

if not current_platform.is_cpu():
    pytest.skip("the plugin changes nothing on other platforms", allow_module_level=True)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32])
def layer(request: pytest.FixtureRequest) -> RMSNorm:
    with set_current_vllm_config(VllmConfig()):
        layer = RMSNorm(96, eps=1e-5, dtype=request.param)
    torch.nn.init.normal_(layer.weight, 1.0, 0.2)
    return layer


def some(layer: RMSNorm, rows: int) -> torch.Tensor:
    return torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).to(layer.weight.dtype)


@pytest.mark.parametrize("rows", [1, 7])
def test_it_is_as_the_layer_has_it(layer: RMSNorm, rows: int) -> None:
    x, residual = some(layer, rows), some(layer, rows + 1)[:rows]
    exact = 2e-2 if x.dtype == torch.bfloat16 else 1e-5  # one rounding of a bf16, and another
    torch.testing.assert_close(rms_norm(layer, x), layer.forward_native(x), rtol=exact, atol=1e-6)
    normed, added = layer.forward_native(x.clone(), residual.clone())
    found, kept = rms_norm(layer, x, residual)
    torch.testing.assert_close(found, normed, rtol=exact, atol=1e-6)
    torch.testing.assert_close(kept, added, rtol=0, atol=0)


def test_rows_that_do_not_lie_one_after_another_go_the_old_way(layer: RMSNorm) -> None:
    wide = torch.cat([some(layer, 5), some(layer, 5)], dim=1)
    torch.testing.assert_close(rms_norm(layer, wide[:, :96]), layer.forward_native(wide[:, :96]), rtol=0, atol=0)


def test_vllm_finds_the_plugin_and_uses_it(layer: RMSNorm, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "kudos_cpu_norm"]
    monkeypatch.setattr(RMSNorm, "forward_cpu", RMSNorm.forward_cpu)  # put back afterwards
    found.load()()
    with set_current_vllm_config(VllmConfig()):
        other = RMSNorm(96, eps=1e-5, dtype=layer.weight.dtype)
    other.weight.data = layer.weight.data
    x = some(layer, 3)
    assert other.forward_cpu.__func__ is rms_norm
    torch.testing.assert_close(other.forward_cpu(x), rms_norm(layer, x), rtol=0, atol=0)
