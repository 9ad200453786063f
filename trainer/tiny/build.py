"""Builds kudos-tiny from a seed: the world's dialogues, the tokenizer, a Llama trained from nothing, a model folder.

The same seed gives the same weights, bit for bit, on the same kind of processor with the same number of threads:
sums are taken in another order when either changes. The tokenizer and the dialogues do not depend on them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.supervised import Step, Summary, SupervisedConfig, TokenisedDialogue, train_supervised
from trainer.tiny.dialogues import Message, make_dialogues
from trainer.tiny.tokenizer import CONTEXT, VOCABULARY, save_tokenizer, train_tokenizer
from trainer.tokens import encode_dialogue, load_tokenizer

MODEL_FOLDER = Path(__file__).parent / "model"
DEFAULT_DIALOGUES = 120_000
_TOKENIZER_DIALOGUES = 20_000


@dataclass(frozen=True)
class Built:
    folder: Path
    parameters: int
    summary: Summary


def new_model(seed: int, tokenizer: Any) -> Any:
    """An untrained Llama of 4.3 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """bf16 safetensors, the tokenizer, and a generation config that knows the end."""
    import torch
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)


def tokenise(tokenizer: Any, dialogues: list[tuple[Message, ...]]) -> list[TokenisedDialogue]:
    """The dialogues that fit the context, which is all of them but for the odd long text."""
    encoded = (encode_dialogue(tokenizer, messages) for messages in dialogues)
    return [(ids, mask) for ids, mask in encoded if len(ids) <= CONTEXT]


def build(
    folder: Path,
    *,
    seed: int = 0,
    dialogues: int = DEFAULT_DIALOGUES,
    threads: int = 2,
    config: SupervisedConfig | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_step: Callable[[Step], None] | None = None,
) -> Built:
    """Write a trained model folder. `dialogues` is the length of the training: each is seen once."""
    import torch

    torch.set_num_threads(threads)
    on_stage(f"writing {dialogues} dialogues")
    texts = [dialogue.messages for dialogue in make_dialogues(seed, dialogues, "train")]
    on_stage("training the tokenizer")
    sample = texts[:_TOKENIZER_DIALOGUES]
    save_tokenizer(train_tokenizer(message["content"] for messages in sample for message in messages), folder)
    tokenizer = load_tokenizer(folder)
    on_stage("tokenising")
    tokenised = tokenise(tokenizer, texts)
    model = new_model(seed, tokenizer)
    on_stage("training the model")
    chosen = config or SupervisedConfig(seed=seed, pad_id=tokenizer.pad_token_id)
    summary = train_supervised(model, tokenised, chosen, on_step)
    save_model(model, tokenizer, folder)
    record = {"seed": seed, "dialogues": dialogues, "threads": threads, "config": chosen.model_dump()}
    (folder / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Built(folder, sum(parameter.numel() for parameter in model.parameters()), summary)
