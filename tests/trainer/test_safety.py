"""The safety filter's classifier: trained, published, verified, and asked by the server's own code."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import classifiers
from deploy.errors import Pickle, UnlistedFile, WrongDigest
from feedback.settings import Settings as FeedbackSettings
from feedback.store import Store, open_store
from feedback.votes import Ballot, cast_vote
from server.errors import BadConfiguration
from server.safety.config import Stage
from server.safety.screen import Filter
from server.settings import Settings
from tests.feedback.conftest import add_reply
from trainer.safety import Labelled, SafetyConfig, Trained, train, voted
from trainer.tiny.harm import make_examples

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    texts = [
        Labelled(example.text, example.harmful, held_out=split == "held_out")
        for split, count in (("train", 600), ("held_out", 120))
        for example in make_examples(0, count, split)  # type: ignore[arg-type]
    ]
    people = [Labelled("Sold out, go home.", True, of_people=True), Labelled("See you!", False, of_people=True)]
    root = tmp_path_factory.mktemp("home") / "safety"
    return train(Settings().model_folder(), [*texts, *people], root, SafetyConfig(epochs=2, batch_tokens=1024))


def a_filter(trained: Trained, model: str, home: Path | None = None) -> Filter:
    home = home or trained.folder.parent.parent
    path = home / "safety.toml"
    path.write_text(f'[[classifiers]]\nname = "harm"\nmodel = "{model}"\nlabel = "harmful"\nblock_above = 0.5')
    return Filter(path, home)


def test_it_tells_harmful_replies_from_others(trained: Trained) -> None:
    assert trained.held_out.texts == 120
    assert trained.held_out.lower > 0.5
    assert trained.held_out.caught > trained.held_out.false_alarms + 0.3
    assert trained.flagged == 1
    manifest = classifiers.verify(trained.folder)
    assert manifest.version == trained.folder.name
    assert manifest.training["base"] == "model"
    assert "Sold out" not in (trained.folder / classifiers.MANIFEST_NAME).read_text(), "people's words"


def test_the_server_loads_it_proves_it_and_asks_it_beside_the_event_loop(trained: Trained) -> None:
    safety = a_filter(trained, trained.folder.name)
    [classifier] = safety.classifiers
    texts = [case.text for case in classifiers.verify(trained.folder).probe.cases]
    one_by_one = [classifier.scores([text])[0] for text in texts]

    beats = 0

    async def asked_together() -> list[float]:
        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.001)
                beats += 1

        beating = asyncio.create_task(beat())
        scores = await asyncio.gather(*(classifier.score(text) for text in texts * 4))
        beating.cancel()
        return list(scores)

    together = asyncio.run(asked_together())
    assert together == pytest.approx(one_by_one * 4, abs=0.02)  # padding and the batch change nothing
    assert beats >= 3, "the event loop goes on while it thinks"
    flagged = [bool(asyncio.run(safety.flags_of(text, Stage.OUTPUT))) for text in texts]
    assert flagged == [score >= 0.5 for score in one_by_one]
    assert True in flagged
    assert False in flagged
    safety.close()


def test_a_folder_that_was_changed_is_refused(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "safety" / trained.folder.name
    shutil.copytree(trained.folder, copy)
    manifest = copy / classifiers.MANIFEST_NAME
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)

    def refused(error: type[Exception]) -> None:
        with pytest.raises(error):
            classifiers.verify(copy)
        with pytest.raises(BadConfiguration, match=error.__name__):
            a_filter(trained, trained.folder.name, tmp_path)

    (copy / "more.json").write_text("{}")
    refused(UnlistedFile)
    (copy / "more.json").rename(copy / "more.bin")
    refused(Pickle)
    (copy / "more.bin").unlink()
    body = json.loads(manifest.read_text())
    body["probe"]["cases"][0]["probability"] = 0.123
    manifest.write_text(json.dumps(body))
    refused(WrongDigest)


def test_a_probe_that_is_not_met_is_refused(trained: Trained, tmp_path: Path) -> None:
    """As where another machine's numerics, or another version of a library, compute something else."""
    staging = tmp_path / "staging"
    shutil.copytree(trained.folder, staging)
    draft = classifiers.verify(trained.folder).model_dump(exclude={"files"})
    (staging / classifiers.MANIFEST_NAME).unlink()
    draft["probe"]["cases"] = [{"text": "Hello!", "probability": 1.0}, {"text": "Hi.", "probability": 0.0}]
    wrong = classifiers.publish(staging, classifiers.Draft(**draft), tmp_path / "safety")
    with pytest.raises(BadConfiguration, match="kudos safety train"):
        a_filter(trained, wrong.name, tmp_path)


def test_a_label_that_it_does_not_know_is_named(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "safety.toml"
    path.write_text(f'[[classifiers]]\nname = "harm"\nmodel = "{trained.folder}"\nlabel = "toxic"')
    with pytest.raises(BadConfiguration, match="harmful, harmless, and not 'toxic'"):
        Filter(path, tmp_path)


def test_without_both_kinds_it_does_not_train(tmp_path: Path) -> None:
    one = Labelled("a", True)
    for texts in ([], [one], [one, replace(one, harmful=False)], [one, replace(one, held_out=True)]):
        with pytest.raises(ValueError, match="harmful and harmless"):
            train(Settings().model_folder(), texts, tmp_path, SafetyConfig())


def test_what_people_flagged_becomes_examples(tmp_path: Path) -> None:
    store: Store = open_store(FeedbackSettings(home=tmp_path))
    with store.write() as session:
        for number in range(30):
            for user in ("ada", "bob"):
                reply = add_reply(session, user, text=f"text {number} for {user}")
                ballot = Ballot(harmful=True) if number < 3 and user == "ada" else Ballot(thumb="up")
                cast_vote(session, user_id=user, target_kind="reply", target_id=reply, ballot=ballot)
    with store.read() as session:
        texts = voted(session, consent_default=True)
        assert voted(session, consent_default=False) == []
    store.close()
    assert sorted(text.text for text in texts if text.harmful) == [f"text {number} for ada" for number in range(3)]
    assert sum(not text.harmful for text in texts) == 12, "four times as many others"
    assert all(text.of_people for text in texts)
