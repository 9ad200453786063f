"""How much of what people would have written a policy writes: BLEU and ROUGE-L against held-out corrections.

BLEU: Papineni et al. 2002, by sacrebleu; ROUGE-L: Lin 2004, by rouge-score. Both count shared words, not meaning: two
good answers may share few. So no rule of the gate looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from trainer.optional_imports import without_optional
from trainer.surfaces import words_of

with without_optional():
    from rouge_score.rouge_scorer import RougeScorer


class Words:
    """rouge-score's own tokenizer knows Latin letters alone. Here each Chinese character is a word."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


def overlap(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu` of the whole corpus, 0..100, and `rouge_l`, the mean F1, 0..1. One reference for each text."""
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    pairs = zip(references, texts, strict=True)
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs]
    bleu = BLEU(tokenize="zh", effective_order=True).corpus_score(list(texts), [list(references)])
    return {"bleu": float(bleu.score), "rouge_l": float(np.mean(rouge))}
