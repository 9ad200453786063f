"""Names for contents: the SHA-256 of a model, of a tokenizer, of a file; and the shapes that an adapter must fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from deploy.safetensors_check import shapes_of, weight_files

_CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _digest_of_unchanged(path: Path, size: int, modified_ns: int) -> str:
    return file_digest(path)


def model_digest(folder: Path) -> str:
    """Of the weights and config.json of a model folder. Large files are hashed once per process while unchanged."""
    total = hashlib.sha256()
    for path in [*weight_files(folder), folder / "config.json"]:
        status = path.stat()
        total.update(f"{path.name}\0{_digest_of_unchanged(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return total.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Of tokenizer.json and the chat template: together they decide which ids a conversation becomes.

    The template is chat_template.jinja, or, in older folders, `chat_template` in tokenizer_config.json.
    """
    template_path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template = ""
    if template_path.is_file():
        template = template_path.read_text(encoding="utf-8")
    elif config_path.is_file():
        found = json.loads(config_path.read_bytes()).get("chat_template") or ""
        template = found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    body = f"tokenizer.json\0{file_digest(folder / 'tokenizer.json')}\n" + f"chat_template\0{template}"
    return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True)
class BaseShapes:
    """All that `artifacts.verify` needs to know of the base that the engine holds."""

    digest: str
    tokenizer_digest: str
    shapes: dict[str, tuple[int, ...]]  # tensor name: shape, as in the weights' own headers
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def ties_embeddings(self) -> bool:
        return bool(self.config.get("tie_word_embeddings"))


def base_shapes(folder: Path) -> BaseShapes:
    return BaseShapes(
        digest=model_digest(folder),
        tokenizer_digest=tokenizer_digest(folder),
        shapes=shapes_of(folder),
        config=json.loads((folder / "config.json").read_bytes()),
    )
