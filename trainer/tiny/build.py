"""Builds kudos-tiny from a seed: the world's dialogues, the tokenizer, a Llama trained from nothing, a model folder.

The same seed gives the same weights, bit for bit, on the same kind of processor with the same number of threads:
sums are taken in another order when either changes. The tokenizer and the dialogues do not depend on them.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation_sets import SHIPPED
from trainer.supervised import Step, Summary, SupervisedConfig, TokenisedDialogue, train_supervised
from trainer.tiny.dialogues import Message, make_dialogues
from trainer.tiny.sets import write as write_sets
from trainer.tiny.tokenizer import CONTEXT, VOCABULARY, save_tokenizer, train_tokenizer
from trainer.tokens import encode_dialogue, load_tokenizer

MODEL_FOLDER = Path(__file__).parent / "model"
DEFAULT_DIALOGUES = 150_000
_TOKENIZER_DIALOGUES = 20_000


@dataclass(frozen=True)
class Built:
    folder: Path
    parameters: int
    summary: Summary


def new_model(seed: int, tokenizer: Any) -> Any:
    """An untrained Llama of 4.5 million parameters."""
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
    for written in folder.iterdir():
        written.chmod(0o644)  # the weights come out readable by their owner alone, which no wheel or image wants


def _as_rendered(dialogues: list[tuple[Message, ...]]) -> Iterator[str]:
    """The texts as the chat template shows them to the model: users in lower case."""
    for message in (message for messages in dialogues for message in messages):
        yield message["content"].lower() if message["role"] == "user" else message["content"]


def tokenise(tokenizer: Any, dialogues: list[tuple[Message, ...]]) -> list[TokenisedDialogue]:
    """The dialogues that fit the context, which is all of them but for the odd long text. Packed: a list of Python's
    numbers would take gigabytes."""
    encoded = (encode_dialogue(tokenizer, messages) for messages in dialogues)
    return [(array("H", ids), bytes(mask)) for ids, mask in encoded if len(ids) <= CONTEXT]


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
    save_tokenizer(train_tokenizer(_as_rendered(sample)), folder)
    tokenizer = load_tokenizer(folder)
    on_stage("tokenising")
    tokenised = tokenise(tokenizer, texts)
    model = new_model(seed, tokenizer)
    model.set_attn_implementation("eager")  # a third quicker on a processor at these lengths; the weights do not care
    on_stage("training the model")
    chosen = config or SupervisedConfig(
        optimiser="muon", learning_rate=3e-3, batch_tokens=3584, seed=seed, pad_id=tokenizer.pad_token_id
    )
    summary = train_supervised(model, tokenised, chosen, on_step)
    save_model(model, tokenizer, folder)
    write_sets(folder / SHIPPED)
    record = {"seed": seed, "dialogues": dialogues, "threads": threads, "config": chosen.model_dump()}
    (folder / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Built(folder, sum(parameter.numel() for parameter in model.parameters()), summary)
