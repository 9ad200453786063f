"""Our products with adapters on CPU against vLLM's own, which are right wherever every token has an adapter."""

from importlib.metadata import entry_points

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper import punica_cpu
from vllm.platforms import current_platform

from server.cpu_lora import add_adapters, groups_of

SLOTS, RANK, WIDTH, TOKENS = 3, 4, 12, 9
OUT = (20, 5)
Tensors = tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(TOKENS, WIDTH, generator=generator),
        tuple(torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator) for _ in OUT),
        tuple(torch.randn(SLOTS, 1, out, RANK, generator=generator) for out in OUT),
    )


def theirs(slots: list[int], tensors: Tensors, *, is_prefill: bool) -> torch.Tensor:
    x, a, b = tensors
    own = [kind for kind in punica_cpu.PunicaWrapperCPU.__mro__ if kind.__name__ == "PunicaWrapperCPU"]
    wrapper = own[0](64, 16, "cpu")  # also where the plugin is installed
    wrapper.update_metadata(LoRAMapping(tuple(1 + slot for slot in slots), (1,), is_prefill), [1, 2, 3], SLOTS, 99)
    y = torch.ones(TOKENS, sum(OUT))
    wrapper.add_lora_linear(y, x, a, b, 0.5, OUT)
    return y


@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("slots", [[1] * 9, [0, 2, 1, 1, 0, 2, 2, 0, 1], [2, 2, 2, 2, 2, 2, 2, 0, 0]])
def test_it_is_as_vllm_has_it(slots: list[int], tensors: Tensors, is_prefill: bool) -> None:
    x, a, b = tensors
    y = torch.ones(TOKENS, sum(OUT))
    add_adapters(groups_of(torch.tensor(slots)), y, x, a, b, 0.5, OUT)
    torch.testing.assert_close(y, theirs(slots, tensors, is_prefill=is_prefill))


def test_a_row_without_an_adapter_is_left_alone(tensors: Tensors) -> None:
    """vLLM's own functions would read the last slot for it."""
    x, a, b = tensors
    slots = torch.tensor([-1, 2, -1, 0, 2, -1, 0, 1, -1])
    y = torch.ones(TOKENS, sum(OUT))
    add_adapters(groups_of(slots), y, x, a, b, 1.0, OUT)
    assert (y[slots == -1] == 1).all()
    assert (y[slots != -1] != 1).any(dim=1).all()
    assert groups_of(torch.full((9,), -1)) == []


def test_vllm_finds_the_plugin_and_uses_it(tensors: Tensors) -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "kudos_cpu_lora"]
    if not current_platform.is_cpu():
        pytest.skip("the plugin changes nothing on other platforms")
    found.load()()
    wrapper = punica_cpu.PunicaWrapperCPU(64, 16, "cpu")
    assert type(wrapper).__name__ == "GroupedAdapters"
    x, a, b = tensors
    for slots in ([0] * 9, [-1] * 9, [2, -1, 2, -1, 1, 0, -1, 2, 2]):  # a batch is not taken for the one before it
        mapping = LoRAMapping(tuple(1 + slot for slot in slots), (1,), is_prefill=False)
        wrapper.update_metadata(mapping, [1, 2, 3], SLOTS, 99)
        mine, expected = torch.ones(TOKENS, sum(OUT)), torch.ones(TOKENS, sum(OUT))
        wrapper.add_lora_linear(mine, x, a, b, 0.5, OUT)
        add_adapters(groups_of(torch.tensor(slots)), expected, x, a, b, 0.5, OUT)
        torch.testing.assert_close(mine, expected)
