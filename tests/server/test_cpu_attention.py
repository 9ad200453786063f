"""The plugin calls attention plainly, and leaves it alone where torch may compile. Real replies: every other test."""

from importlib.metadata import entry_points

import pytest
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("the plugin changes nothing on other platforms", allow_module_level=True)


@pytest.mark.parametrize(("disabled", "opaque"), [("1", False), ("0", True)])
def test_vllm_finds_the_plugin_and_uses_it(disabled: str, opaque: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "kudos_cpu_attention"]
    kind = type(current_platform)
    monkeypatch.setattr(kind, "opaque_attention_op", classmethod(lambda _: True))  # as vLLM has it; put back afterwards
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", disabled)
    found.load()()
    assert current_platform.opaque_attention_op() is opaque
