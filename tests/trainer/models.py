"""Models, tokenizers and samplers of a size at which a whole test takes a second. Weights are random, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.backbone import FROZEN, Backbone, Weights
from trainer.batches import Batch
from trainer.sampler import Rollout

VOCAB = 48
END = 1
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LINES = (
    "hello there, how are you today?",
    "thank you very much, that is kind of you!",
    "where is my order, please?",
    "the sun is warm and the sky is blue.",
    "你好，今天天气很好。",
    "谢谢你，再见！",
)


def causal_lm(family: str = "llama", *, seed: int = 0, **config: Any) -> Any:
    """A random decoder in float32. Its weights are larger than a fresh model's, so that its output varies."""
    make_config, make_model = FAMILIES[family]
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": END,
        "bos_token_id": None,
        "attn_implementation": "sdpa",
    }
    if family == "qwen2":
        shape.pop("head_dim")
    torch.manual_seed(seed)
    return make_model(make_config(**(shape | config))).eval()


def make_backbone(family: str = "llama", *, seed: int = 0, **config: Any) -> Backbone:
    return Backbone(causal_lm(family, seed=seed, **config))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of a few lines, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model_folder(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A model that an engine loads: bf16 weights, configuration, tokenizer, chat template."""
    tokenizer = make_tokenizer()
    shape = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": True}
    model = causal_lm(seed=seed, **(shape | config)).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_whole(rows: Sequence[Sequence[int]]) -> Batch:
    """A batch of which every position is read: each row's first token is its prompt."""
    return Batch.of([row[:1] for row in rows], [row[1:] for row in rows], shared=False)


@torch.no_grad()
def all_logits(backbone: Backbone, rows: Sequence[Sequence[int]], weights: Weights = FROZEN) -> Tensor:
    """(tokens, V), row after row."""
    batch = read_whole(rows)
    hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
    return F.linear(backbone.normed(hidden, weights), backbone.head(weights))


class TorchSampler:
    """`trainer.sampler.Samples` by plain torch, in float32: exact and quick at these sizes. The real engine has its own
    tests (test_sampler.py, test_run.py)."""

    def __init__(self, end_id: int = END) -> None:
        self.end_id = end_id
        self.backbone: Backbone | None = None
        self.weights: dict[str, Tensor] = {}

    def update(self, backbone: Backbone, weights: dict[str, Tensor]) -> None:
        self.backbone, self.weights = backbone, {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Rollout]:
        assert self.backbone is not None
        generator = torch.Generator().manual_seed(seed)
        rows = [list(prompt) for prompt in prompts]
        logprobs: list[list[float]] = [[] for _ in rows]
        ended = [False] * len(rows)
        for _ in range(max_tokens):
            alive = [row for row in range(len(rows)) if not ended[row]]
            if not alive:
                break
            batch = Batch.of([rows[row][:-1] for row in alive], [rows[row][-1:] for row in alive], shared=False)
            backbone, weights = self.backbone, self.weights
            hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
            last = hidden[batch.token_BR[:, 0]]
            logits = F.linear(backbone.normed(last, weights), backbone.head(weights)).float() / temperature
            table = torch.log_softmax(logits, -1)
            drawn = torch.multinomial(table.exp(), 1, generator=generator)
            for place, row in enumerate(alive):
                token = int(drawn[place])
                rows[row].append(token)
                logprobs[row].append(float(table[place, token]))
                ended[row] = token == self.end_id
        return [
            Rollout(list(prompt), row[len(prompt) :], chosen, end)
            for prompt, row, chosen, end in zip(prompts, rows, logprobs, ended, strict=True)
        ]
