"""What each token id stands for: its exact bytes, and logprobs as OpenAI's clients read them.

A token of a byte-level vocabulary may be part of a character, so its text alone does not say what it is: the bytes of a
reply's tokens, one after another, are the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LOWEST = -9999.0  # JSON has no infinity: what sampling had ruled out


class Vocabulary:
    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        self._token = backend.id_to_token
        self._added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in self._added.items() if token.special)
        self._byte_level = b'"ByteLevel"' in backend.decoder.__getstate__()
        self._spelled: dict[int, tuple[str, list[int]]] = {}

    def bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id].content).encode()
        token = self._token(token_id)
        if token is None:  # models pad their vocabulary to a round size
            return b""
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in token)
        if len(token) == 6 and token.startswith("<0x"):  # SentencePiece spells a byte that is no character so
            return bytes([int(token[3:5], 16)])
        return str(token).replace("\u2581", " ").encode()

    def content(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        likely: Sequence[Sequence[tuple[int, float]]] = (),
    ) -> list[dict[str, Any]]:
        """OpenAI's `logprobs.content`: one entry a token; none for special tokens, whose text nobody sees.

        `likely` has each position's most likely (id, logprob), best first; nothing where none were asked for.
        """
        return [
            {**self._entry(token_id, logprob), "top_logprobs": [self._entry(*each) for each in others]}
            for token_id, logprob, others in zip(token_ids, logprobs, likely or [()] * len(token_ids), strict=True)
            if token_id not in self._special
        ]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        known = self._spelled.get(token_id)
        if known is None:
            spelled = self.bytes_of(token_id)
            known = self._spelled[token_id] = (spelled.decode("utf-8", "replace"), list(spelled))
        return {"token": known[0], "logprob": max(logprob, LOWEST), "bytes": known[1]}


def _byte_characters() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
