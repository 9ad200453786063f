"""BLEU and ROUGE-L, against values worked out by hand."""

import pytest

from trainer.overlap import overlap


def test_the_same_words_are_a_hundred_and_one() -> None:
    texts = ["The backpack costs 49 euros.", "你好，今天天气很好。"]
    assert overlap(texts, texts) == {"bleu": pytest.approx(100.0), "rouge_l": pytest.approx(1.0)}


def test_no_word_in_common_is_nothing() -> None:
    found = overlap(["我不知道"], ["The backpack costs 49 euros."])
    assert found["rouge_l"] == 0.0
    assert found["bleu"] == pytest.approx(0.0)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "it costs nine" of 4 and 5 words: precision 3/4, recall 3/5.
    assert overlap(["it costs just nine"], ["it costs about nine euros"])["rouge_l"] == pytest.approx(2 / 3)
    # 书, 很, 贵 of 4 and 4 characters.
    assert overlap(["书很贵呢"], ["书不很贵"])["rouge_l"] == pytest.approx(3 / 4)


def test_bleu_is_the_geometric_mean_of_the_ngrams_precisions() -> None:
    precisions = 5 / 6 * 3 / 5 * 2 / 4 * 1 / 3  # of 1-grams to 4-grams
    found = overlap(["the cat sat on a mat"], ["the cat sat on the mat"])["bleu"]
    assert found == pytest.approx(100 * precisions**0.25, rel=1e-3)
