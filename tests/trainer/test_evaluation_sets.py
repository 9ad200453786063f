"""Evaluation sets: what a check lets pass, what a file may hold, and where a run looks for them."""

import json
from pathlib import Path

import pytest

from trainer.errors import BadEvaluationSet
from trainer.evaluation_sets import Case, EvaluationSet, load_sets, read_cases

ASKED = [{"role": "user", "content": "what is 3 + 4?"}]


def case(**checks: object) -> Case:
    return Case.model_validate({"messages": ASKED, **checks})


@pytest.mark.parametrize(
    ("answer", "reply", "passes"),
    [
        ("7", "3 + 4 = 7.", True),
        ("7", "3加4等于7哦。", True),
        ("7", "It is 17.", False),
        ("7", "It is 7th.", False),
        ("Paris", "paris is the capital", True),
        ("Paris", "Parisians", False),
        ("已打包", "订单2416已打包。", True),
        ("C++", "I like c++.", True),
    ],
)
def test_an_answer_is_named_as_a_whole_word(answer: str, reply: str, passes: bool) -> None:
    assert case(answer=answer).passes(reply) is passes


def test_all_that_must_match_and_nothing_that_must_not() -> None:
    polite = case(must_match=["cannot|do not", "sorry"], must_not_match=["fool", "^$"])
    assert polite.passes("Sorry, I CANNOT do that.")
    assert not polite.passes("I cannot do that.")
    assert not polite.passes("Sorry, I cannot do that, you fool.")
    assert not polite.passes("")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": ASKED}, "every reply passes"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "7"}], "answer": "7"}, "the user's"),
        ({"messages": [], "answer": "7"}, "messages"),
        ({"messages": ASKED, "must_match": ["(7"]}, "no regular expression"),
        ({"messages": ASKED, "must_mach": ["7"]}, "must_mach"),
        ({"messages": [{"role": "tool", "content": "7"}], "answer": "7"}, "role"),
        ({"messages": ASKED, "answer": ""}, "answer"),
        ("no JSON", "JSON"),
    ],
)
def test_a_line_that_is_no_case_is_named_with_its_number(tmp_path: Path, line: object, says: str) -> None:
    good = json.dumps({"messages": ASKED, "answer": "7"})
    path = tmp_path / "sums.jsonl"
    path.write_text(f"{good}\n\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(BadEvaluationSet, match=r"sums\.jsonl, line 3: ") as caught:
        read_cases(path)
    assert says in str(caught.value)


def test_a_set_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadEvaluationSet, match="cannot be read"):
        load_sets(tmp_path, {"sums": str(tmp_path / "sums.jsonl")})
    (tmp_path / "sums.jsonl").write_text("\n")
    with pytest.raises(BadEvaluationSet, match="holds no case"):
        load_sets(tmp_path, {"sums": str(tmp_path / "sums.jsonl")})


def test_a_models_own_sets_are_found_and_the_configs_take_their_place(tmp_path: Path) -> None:
    def write(path: Path, answer: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"messages": ASKED, "answer": answer}) + "\n")
        return str(path)

    write(tmp_path / "model" / "evaluation" / "sums.jsonl", "7")
    write(tmp_path / "model" / "evaluation" / "kind.jsonl", "dear")
    assert load_sets(tmp_path / "nothing", {}) == []
    named = {"sums": write(tmp_path / "mine.jsonl", "8"), "more": write(tmp_path / "more.jsonl", "9")}
    found = {each.name: each.cases[0].answer for each in load_sets(tmp_path / "model", named)}
    assert found == {"kind": "dear", "sums": "8", "more": "9"}


def test_rates_are_shares_of_replies_and_doubt_is_over_prompts() -> None:
    whole = EvaluationSet("sums", tuple(case(answer=str(number)) for number in range(10)))
    right = [str(number) for number in range(10) for _ in range(4)]
    rates = whole.rates(right, ["0"] * 40, each=4)
    assert (rates.prompts, rates.candidate, rates.serving) == (10, 1.0, 0.1)
    # Ten prompts, however many replies each: nobody can be sure of more than seven in ten.
    assert rates.candidate_lower == pytest.approx(0.722, abs=1e-3)
    assert rates.candidate_upper == pytest.approx(1.0)
    again = whole.rates([text for text in right for _ in range(5)], ["0"] * 200, each=20)
    assert again.candidate_lower == rates.candidate_lower
