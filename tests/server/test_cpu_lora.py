"""Our products with adapters on CPU against vLLM's own, which are right wherever every token has an adapter."""

from importlib.metadata import entry_points

import pytest
import torch
from vllm.lora.ops import torch_ops as theirs
from vllm.platforms import current_platform

from server import cpu_lora as ours

SLOTS, RANK, WIDTH, OUT = 3, 4, 12, 20


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(9, WIDTH, generator=generator),
        torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator),
        torch.randn(SLOTS, 1, OUT, RANK, generator=generator),
    )


@pytest.mark.parametrize("slots", [[1] * 9, [0, 2, 1, 1, 0, 2, 2, 0, 1], [2, 2, 2, 2, 2, 2, 2, 0, 0]])
def test_decode_is_as_vllm_has_it(slots: list[int], tensors: tuple[torch.Tensor, ...]) -> None:
    inputs, a, b = tensors
    slots_T = torch.tensor(slots)
    outputs = []
    for module in (ours, theirs):
        low, high = torch.zeros(9, RANK), torch.ones(9, OUT + 5)
        module.bgmv_shrink(inputs, a, low, slots_T, 0.5)
        module.bgmv_expand(low, b, high, slots_T, True)
        module.bgmv_expand_slice(low, b, high, slots_T, 3, OUT, True)
        outputs.append((low, high))
    for mine, other in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, other)


def test_prefill_is_as_vllm_has_it(tensors: tuple[torch.Tensor, ...]) -> None:
    inputs, a, b = tensors
    lengths, slots = torch.tensor([4, 3, 2]), torch.tensor([2, 0, 2])
    meta = (torch.tensor([0, 4, 7]), lengths, slots, 3, 4, 9)
    outputs = []
    for module in (ours, theirs):
        low, high = torch.zeros(9, RANK), torch.ones(9, OUT)
        module.sgmv_shrink(inputs, a, low, *meta, 2.0)
        module.sgmv_expand(low, b, high, *meta, True)
        module.sgmv_expand_slice(low, b[:, :, :7], high, *meta, 2, 7, False)
        outputs.append((low, high))
    for mine, other in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_row_without_an_adapter_is_left_alone(tensors: tuple[torch.Tensor, ...]) -> None:
    """vLLM's own functions would read the last slot for it."""
    inputs, a, b = tensors
    slots_T = torch.tensor([-1, 2, -1, 0, 2, -1, 0, 1, -1])
    low, high = torch.zeros(9, RANK), torch.ones(9, OUT)
    ours.bgmv_shrink(inputs, a, low, slots_T)
    ours.bgmv_expand(low, b, high, slots_T)
    bare = slots_T == -1
    assert (low[bare] == 0).all()
    assert (high[bare] == 1).all()
    assert (high[~bare] != 1).any(dim=1).all()
    ours.bgmv_expand(low, b, high, torch.full((9,), -1))
    assert (high[bare] == 1).all()


def test_vllm_finds_the_plugin_and_uses_it() -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "kudos_cpu_lora"]
    if not current_platform.is_cpu():
        pytest.skip("the plugin changes nothing on other platforms")
    from vllm.lora.punica_wrapper import punica_cpu

    found.load()()
    assert punica_cpu.sgmv_shrink is ours.sgmv_shrink
