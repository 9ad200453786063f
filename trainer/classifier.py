"""A text classifier as a term of the reward: sentiment, politeness, a topic; any transformers model for
text classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.config import ClassifierTerm
from trainer.errors import UnsupportedModel

BATCH = 64


class Classifier:
    """Loads the model once. Raises UnsupportedModel where it does not know the label."""

    def __init__(self, term: ClassifierTerm) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.term = term
        self._tokenizer: Any = AutoTokenizer.from_pretrained(term.model)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(term.model).eval()
        labels = {name: index for index, name in self._model.config.id2label.items()}
        if term.label not in labels:
            raise UnsupportedModel(
                f"{term.model} knows the labels {', '.join(sorted(labels))}, and not {term.label!r}: "
                f"change the label of the reward's classifier {term.name!r}"
            )
        self._label = int(labels[term.label])

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(B,): how probable the label is for each text."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True
            )
            parts.append(self._model(**batch).logits.float().softmax(-1)[:, self._label])
        return torch.cat(parts)
