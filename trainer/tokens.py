"""Text to token ids and back, for any Hugging Face tokenizer with a chat template.

Special tokens that people type are never parsed as such. A special token in a message's text gets a space after
its first character before the template sees it (`neutralise`), and replies are encoded with
`split_special_tokens`. A template may do the same by itself, so that every engine that renders it is safe:
kudos-tiny's does.

Not here: the tokens of replies that were sampled. Those are kept as the engine gave them and never made anew.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Message = Mapping[str, str]


class TemplateError(TrainerError, ValueError):
    """The chat template is missing, or it does not extend a conversation by appending to it."""


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder (or hub name), checked for what training needs: an end, and a template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.eos_token_id is None:
        raise TemplateError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.chat_template is None:
        raise TemplateError(f"the tokenizer of {path} has no chat template")
    return tokenizer


def neutralise(tokenizer: Any, text: str) -> str:
    """The text with every special token in it broken by a space, so that no tokenizer takes it for one."""
    for token in tokenizer.all_special_tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _ids(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> list[int]:
    safe = [{**message, "content": neutralise(tokenizer, message["content"])} for message in messages]
    ids = tokenizer.apply_chat_template(safe, add_generation_prompt=prompt, tokenize=True, return_dict=False)
    return [int(each) for each in ids]


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to and including what opens the assistant's reply."""
    return _ids(tokenizer, messages, prompt=True)


def encode_reply(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a reply, ending in the end-of-sequence token."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [*(int(each) for each in ids), int(tokenizer.eos_token_id)]


def encode_dialogue(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids of a dialogue that ends with a reply, and which of them are the assistant's (its end tokens included).

    Raises TemplateError where the prompt of a later turn does not begin with the turns before it: such a template
    rewrites history, and one sequence cannot then train every turn.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render_prompt(tokenizer, messages[:index])
        if prompt[: len(ids)] != ids:
            raise TemplateError("the chat template changes earlier turns; train each turn as its own dialogue")
        reply = encode_reply(tokenizer, message["content"])
        mask += [False] * (len(prompt) - len(ids)) + [True] * len(reply)
        ids = prompt + reply
    return ids, mask


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def readable_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """A rendered prompt for people: a line for each piece between special tokens."""
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "\n")
    return "\n".join(line for line in text.splitlines() if line.strip())
