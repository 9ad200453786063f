"""From the log to token ids: what the engine sampled stays as it was, and the evaluation's prompts are kept apart."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from feedback.ledger import begin_reply, finish_reply
from feedback.samples import collect
from feedback.schema import Reply, ReplyState, TargetKind
from feedback.settings import Settings
from feedback.store import Store, open_store
from feedback.votes import Ballot, cast_vote
from tests.trainer.models import make_tokenizer
from tests.trainer.votes import write_votes
from trainer.checkpoint import RunFolder
from trainer.examples import Examples, PairExample, ThumbExample, to_examples
from trainer.likelihood import LEFT, RIGHT
from trainer.tokens import encode_reply, render_prompt

TOKENIZER = make_tokenizer()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(home=tmp_path, database_url=None))
    yield opened
    opened.close()


def _examples(store: Store, max_tokens: int = 384, kept_prompts: int = 8, seed: int = 0) -> Examples:
    with store.read() as session:
        samples = collect(session, consent_default=True)
    return to_examples(samples, TOKENIZER, max_tokens=max_tokens, kept_prompts=kept_prompts, seed=seed)


def test_votes_become_examples_with_the_ids_that_were_sampled(store: Store) -> None:
    write_votes(store, TOKENIZER)
    found = _examples(store)
    everything = [*found.train, *found.held_out]
    assert 0 < len(found.held_out) < len(found.train)
    assert {type(example) for example in found.train} == {PairExample, ThumbExample}
    for side in (found.train, found.held_out):  # each counts its own people
        assert {example.user for example in side} == set(range(len({example.user for example in side})))
    for example in everything:
        replies = [example.left, example.right] if isinstance(example, PairExample) else [example.reply]
        assert all(reply[-1] == TOKENIZER.eos_token_id for reply in replies)
    outcomes = [example.outcome for example in everything if isinstance(example, PairExample)]
    assert set(outcomes) == {LEFT, RIGHT}


def test_the_evaluations_prompts_are_kept_from_ppo_and_chosen_by_the_seed(store: Store) -> None:
    write_votes(store, TOKENIZER)
    found, again, other = _examples(store), _examples(store), _examples(store, seed=5)
    practised, kept = ({tuple(prompt) for prompt in part} for part in (found.prompts, found.kept_prompts))
    assert len(kept) == 8
    assert practised
    assert not practised & kept
    assert len(practised) == len(found.prompts)
    assert found == again
    assert found.kept_prompts != other.kept_prompts
    assert len(_examples(store, kept_prompts=1000).kept_prompts) <= (len(practised) + len(kept)) // 4


def _one_vote(store: Store, ballot: Ballot, *, recorded: list[int] | None, text: str = "where is my order") -> None:
    messages = [{"role": "user", "content": "hello there"}]
    with store.write() as session:
        row = Reply(
            id="chatcmpl-1",
            conversation_id="conv-1",
            user_id="ada",
            messages=messages,
            prompt_digest="d",
            policy_version="v0-00000000",
        )
        begin_reply(session, row)
        finish_reply(session, row.id, state=ReplyState.COMPLETE, text=text, token_ids=recorded)
        cast_vote(session, user_id="ada", target_kind=TargetKind.REPLY, target_id=row.id, ballot=ballot)


def test_a_correction_is_preferred_to_the_reply_that_it_corrects(store: Store) -> None:
    _one_vote(store, Ballot(correction="thank you very much"), recorded=[9, 9, 1])
    (example,) = _examples(store).train
    assert isinstance(example, PairExample)
    assert example.outcome == LEFT
    assert example.left == encode_reply(TOKENIZER, "thank you very much")
    assert example.right == [9, 9, 1], "as sampled, never made anew from the text"


def test_imported_text_is_tokenised_here(store: Store) -> None:
    _one_vote(store, Ballot(rating=0.75), recorded=None)
    (example,) = _examples(store).train
    assert isinstance(example, ThumbExample)
    assert example.up == 0.75
    assert example.reply == encode_reply(TOKENIZER, "where is my order")
    assert example.prompt == render_prompt(TOKENIZER, [{"role": "user", "content": "hello there"}])


def test_a_long_prompt_keeps_its_newest_part_within_the_context(store: Store) -> None:
    _one_vote(store, Ballot(thumb="up"), recorded=list(range(10, 40)))
    whole = render_prompt(TOKENIZER, [{"role": "user", "content": "hello there"}])
    (example,) = _examples(store, max_tokens=32).train
    assert isinstance(example, ThumbExample)
    assert example.reply == list(range(10, 26)), "a reply gets at most half of the context"
    assert example.length <= 32
    assert whole[-len(example.prompt) :] == example.prompt


def test_examples_survive_the_run_folder_and_are_then_forgotten(store: Store, tmp_path: Path) -> None:
    write_votes(store, TOKENIZER)
    found, folder = _examples(store), RunFolder(tmp_path / "run")
    assert folder.load_examples() is None
    folder.save_examples(found)
    assert folder.load_examples() == found
    folder.forget_examples()
    assert folder.load_examples() is None
    assert not list((tmp_path / "run").iterdir())


def test_what_is_saved_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.load_state() is None
    assert folder.load_json("assessment") is None
    folder.save_json("assessment", {"accuracy": 0.5})
    folder.save_state({"weights": torch.ones(2), "iteration": 3})
    (tmp_path / "run" / "checkpoint.pt.part").write_bytes(b"half of the next one")
    assert json.loads((tmp_path / "run" / "assessment.json").read_text()) == {"accuracy": 0.5}
    state = folder.load_state()
    assert state is not None
    assert state["iteration"] == 3
    folder.forget_state()
    assert folder.load_state() is None
