"""An adapter in the base's weights: the same bits as the trainer's, whole on disk or not there, and never urgent."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlmodel import select

from deploy import policies
from deploy.artifacts import Published
from deploy.gate import Verdict
from feedback.schema import Policy, Reply
from server import fold
from server.errors import Unfoldable
from server.fold import Patience, Shelf, merge
from tests.deploy.folders import make_adapter, make_model, publish_adapter
from tests.server.conftest import ForkedServer, Running, ask, wait_for
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.lora import LoraAdapter
from trainer.tiny.build import MODEL_FOLDER

Make = Callable[..., ForkedServer]


def test_the_weights_are_the_trainers_to_the_last_bit(tmp_path: Path) -> None:
    backbone = Backbone.load(MODEL_FOLDER)
    adapter = LoraAdapter(backbone, LoraConfig(rank=16, alpha=24.0), seed=3)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    adapter.round_to_served()
    (folder := tmp_path / "adapter").mkdir()
    adapter.save_peft(folder, "the base")
    (target := tmp_path / "folded").mkdir()
    names = merge(MODEL_FOLDER, folder, target)
    assert sorted(names) == sorted(path.name for path in target.iterdir())
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(names)
    with torch.no_grad():
        expected = backbone.merged_state(adapter.merged())
    found, frozen = load_file(target / "model.safetensors"), load_file(MODEL_FOLDER / "model.safetensors")
    assert found.keys() == frozen.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
    assert sum(not torch.equal(found[name], frozen[name]) for name in found) == len(adapter.a)


def test_shards_are_merged_one_by_one(tmp_path: Path) -> None:
    whole, adapter = make_model(tmp_path / "base"), make_adapter(tmp_path / "adapter")
    tensors = load_file(whole / "model.safetensors")
    sharded = shutil.copytree(whole, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    places = {name: f"model-{1 + at % 2}.safetensors" for at, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for base in (whole, sharded):
        (tmp_path / f"of-{base.name}").mkdir()
        merge(base, adapter, tmp_path / f"of-{base.name}")
    found = load_file(tmp_path / "of-base" / "model.safetensors")
    parts = [load_file(tmp_path / "of-sharded" / shard) for shard in set(places.values())]
    again = {name: tensor for part in parts for name, tensor in part.items()}
    assert found.keys() == again.keys() == tensors.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["model.layers.0.self_attn.k_proj.weight"].dtype == torch.float32, "what no adapter touches is copied"


def test_more_than_a_product_is_not_folded(tmp_path: Path) -> None:
    base, adapter = make_model(tmp_path / "base"), make_adapter(tmp_path / "adapter")
    shelf = Shelf(tmp_path / "shelf")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(Unfoldable, match="use_rslora"):
        shelf.put("v1", base, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    quantized = make_model(tmp_path / "quantized", quantization_config={"quant_method": "fp8"})
    with pytest.raises(Unfoldable, match="quantized"):
        shelf.put("v1", quantized, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    elsewhere = {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(elsewhere, adapter / "adapter_model.safetensors")
    with pytest.raises(Unfoldable, match="sits on 6 weights, of which base has 3"):
        shelf.put("v1", base, adapter)
    assert [path.name for path in (tmp_path / "shelf").glob("*/*") if path.is_dir()] == [], "nothing half is left"


def test_a_shelf_has_one_policy_and_goes_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, root = make_model(tmp_path / "base"), make_adapter(tmp_path / "adapter"), tmp_path / "shelf"
    shelf, other = Shelf(root), Shelf(root)
    first = shelf.put("v1", base, adapter)
    assert shelf.has(first)
    assert not other.has(first)
    assert shelf.put("v1", base, adapter) == first
    second, theirs = shelf.put("v2", base, adapter), other.put("v1", base, adapter)
    assert (first.exists(), second.exists(), theirs.exists()) == (False, True, True)
    fold.sweep(root)
    assert second.exists(), "its process lives"
    os.close(other._lock)  # as when a process is killed
    fold.sweep(root)
    assert (second.exists(), theirs.exists()) == (True, False)
    shelf.closing = True
    with pytest.raises(Unfoldable, match="the server ends"):
        shelf.put("v3", base, adapter)
    shelf.closing = False
    monkeypatch.setattr(fold, "_ROOM_LEFT", 1.0)
    with pytest.raises(Unfoldable, match="MiB free"):
        shelf.put("v3", base, adapter)
    shelf.close()
    assert [path for path in root.iterdir() if path.is_dir()] == []


def test_patience() -> None:
    patience = Patience(60.0)
    assert [patience.ripe("a", at) for at in (0.0, 59.0, 60.0)] == [False, False, True]
    patience.failed(60.0)
    assert [patience.ripe("a", at) for at in (64.0, 65.0)] == [False, True]
    for _ in range(20):
        patience.failed(100.0)
    assert [patience.ripe("a", at) for at in (699.0, 700.0)] == [False, True], "ten minutes at most"
    assert not patience.ripe("b", 700.0), "another one begins anew"
    assert (patience.tries, patience.ripe("b", 760.0), patience.ripe(None, 900.0)) == (0, True, False)
    assert patience.ripe("b", 900.0) is False, "it was away in between"
    patience.never()
    assert not patience.ripe("b", 1e9)


# ---- a server around the fake engine -----------------------------------------------------------------


class Folding:
    def __init__(self, make: Make, tmp_path: Path, **environment: str) -> None:
        self.tmp_path, self.base = tmp_path, make_model(tmp_path / "base")
        defaults = {"KUDOS_FOLD_AFTER_SECONDS": "0.2", "KUDOS_FOLD_WAIT_SECONDS": "5", "KUDOS_RECONCILE_SECONDS": "0.1"}
        self.dead = tmp_path / "dead"
        self.server = make(KUDOS_MODEL=str(self.base), FAKE_ENGINE_DEAD=str(self.dead), **{**defaults, **environment})
        self.running: Running = self.server.start()
        self.client = self.running.client()

    def publish(self, number: int) -> Published:
        scratch = self.tmp_path / "scratch"
        published = publish_adapter(self.base, self.running.home / "policies", scratch, number, seed=number)
        with self.running.store.write() as session:
            parent = session.exec(select(Policy).where(Policy.kind == "base")).one().version
            policies.register(session, published, parent=parent, verdict=Verdict(accepted=True, refusals=[], flags=[]))
        return published

    def start(self, version: str, share: float = 1.0) -> None:
        answer = self.client.post("/v1/rollouts", json={"version": version, "share": share})
        assert answer.status_code == 200, answer.text

    def act(self, action: str) -> None:
        assert self.client.post(f"/v1/rollouts/current/{action}").status_code == 200

    def promoted(self, number: int = 1) -> str:
        version = self.publish(number).version
        self.start(version)
        self.until(lambda wanted: wanted["serving"] == version)
        self.act("promote")
        return version

    @property
    def wanted(self) -> dict[str, Any]:
        return dict(self.client.get("/v1/policies").json()["wanted"])

    def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            wanted = self.wanted
            return wanted if what(wanted) else None

        return dict(wait_for(found, 30, "the server to follow"))

    def swaps(self, kind: str, result: str = "proved") -> float:
        return self.running.metric("kudos_policy_swaps_total", kind=kind, result=result)

    def shelf(self) -> list[str]:
        return [path.name for path in (self.running.home / "folded").glob("*/*") if path.is_dir()]


@pytest.fixture
def folding(forked: Make, tmp_path: Path) -> Callable[..., Folding]:
    return lambda **environment: Folding(forked, tmp_path, **environment)


@contextmanager
def chatting(running: Running, streams: int = 4) -> Iterator[list[str]]:
    """People who ask again and again; yields the versions that answered them."""
    stop, versions = threading.Event(), list[str]()

    def chat(user: str) -> None:
        with running.client(user) as client:
            while not stop.is_set():
                versions.append(ask(client)["system_fingerprint"])

    threads = [threading.Thread(target=chat, args=(f"person{at}",)) for at in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield versions
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_folded_while_it_is_alone(folding: Callable[..., Folding]) -> None:
    server = folding(FAKE_TOKEN_SECONDS="0.01")
    with chatting(server.running) as versions:
        first = server.promoted()
        found = server.until(lambda wanted: wanted["folded"] == first)
        assert (found["serving"], found["holds"], found["problems"]) == (first, [first], {})
        assert server.shelf() == [first]
        assert server.running.metric("kudos_policy_folded") == 1
        assert server.running.metric("kudos_policy_missing") == 0
        rows = wait_for(
            lambda: [row for row in server.client.get("/v1/rollouts/current").json()["replicas"] if row["folded"]],
            30,
            "the row to say so",
        )
        assert [(row["folded"], row["standing"]) for row in rows] == [(first, "in_step")]
        second = server.publish(2).version
        server.start(second, 0.5)
        found = server.until(lambda wanted: second in wanted["holds"])
        assert (found["folded"], first in found["holds"], server.shelf()) == (None, True, [])
        server.act("promote")
        server.until(lambda wanted: wanted["folded"] == second)
        server.act("rollback")
        found = server.until(lambda wanted: wanted["serving"] == first)
        server.until(lambda wanted: wanted["folded"] == first)
        begun = len(versions)
        wait_for(lambda: len(versions) > begun + 8, 30, "people to be answered")
        assert set(versions[begun + 4 :]) == {first}
    assert (server.swaps("fold"), server.swaps("unfold")) == (3, 2)
    with server.running.store.read() as session:
        rows = list(session.exec(select(Reply)))
    assert {row.state for row in rows} == {"complete"}
    assert [row.id for row in rows if row.mixed_versions] == []
    assert server.running.metric("kudos_mixed_policy_replies_total") == 0


@pytest.mark.parametrize(
    "also",
    [
        {"first_version": "base", "second_version": None},
        {"automatic": True},
    ],
)
def test_a_comparison_with_another_keeps_it_apart(folding: Callable[..., Folding], also: dict[str, Any]) -> None:
    server = folding()
    base = server.wanted["base"]
    version = server.promoted()
    server.until(lambda wanted: wanted["folded"] == version)
    body = {name: base if value == "base" else value for name, value in also.items()}
    assert server.client.put("/v1/matchup", json=body).status_code == 200
    server.until(lambda wanted: {base, version} <= set(wanted["holds"]))
    assert server.wanted["folded"] is None
    assert server.client.put("/v1/matchup", json={}).status_code == 200
    server.until(lambda wanted: wanted["folded"] == version)


def test_what_cannot_be_proved_is_undone(folding: Callable[..., Folding]) -> None:
    server = folding(FAKE_FOLD_LIES="1")
    version = server.promoted()
    wait_for(lambda: server.swaps("fold", "not_proved") == 1, 30, "the probe of the folded weights to fail")
    found = server.until(lambda wanted: version in wanted["holds"])
    assert (found["serving"], found["folded"], found["problems"]) == (version, None, {})
    time.sleep(0.5)
    assert server.swaps("fold", "not_proved") == 1, "it is not tried again"
    assert ask(server.client)["system_fingerprint"] == version


@pytest.mark.slow
def test_nobody_waits_for_long_and_nobody_is_cut(folding: Callable[..., Folding]) -> None:
    """12 tokens of 0.1 s: the running replies never end within the wait."""
    server = folding(FAKE_TOKEN_SECONDS="0.1", KUDOS_FOLD_WAIT_SECONDS="0.2")
    with chatting(server.running):
        version = server.promoted()
        wait_for(lambda: server.swaps("fold", "waited") >= 1, 30, "a fold that was put off")
        assert server.wanted["folded"] is None
    server.until(lambda wanted: wanted["folded"] == version)  # nobody chats any more
    with server.running.store.read() as session:
        assert [row.id for row in session.exec(select(Reply)) if row.mixed_versions] == []


@pytest.mark.slow
def test_a_rollback_does_not_wait_for_long(folding: Callable[..., Folding]) -> None:
    server = folding(FAKE_TOKEN_SECONDS="0.3", KUDOS_FOLD_WAIT_SECONDS="0.2")
    version = server.promoted()
    server.until(lambda wanted: wanted["folded"] == version)
    with chatting(server.running, streams=1) as versions:
        wait_for(lambda: server.running.metric("kudos_chat_streams_active") == 1, 30, "a reply to begin")
        began = time.monotonic()
        server.act("rollback")
        server.until(lambda wanted: wanted["serving"].startswith("v0-"))
        assert time.monotonic() - began < 3.0, "the reply takes 3.6 s"
        wait_for(lambda: len(versions) >= 1, 30, "the reply to end")
    with server.running.store.read() as session:
        cut = [row.mixed_versions for row in session.exec(select(Reply)) if row.mixed_versions]
    assert cut == [[version, server.wanted["base"]]], "and it says so"


@pytest.mark.slow
def test_a_dead_engine_starts_on_the_folded_weights(folding: Callable[..., Folding]) -> None:
    server = folding()
    version = server.promoted()
    server.until(lambda wanted: wanted["folded"] == version)
    for folder_is_there in (True, False):
        if not folder_is_there:
            shutil.rmtree(next((server.running.home / "folded").glob("*/v*")))
        server.dead.touch()
        wait_for(lambda: not server.dead.exists() and server.running.ready(), 30, "the engine to start again")
        found = server.until(lambda wanted: wanted["serving"] == version)
        assert version in found["holds"]
        assert ask(server.client)["system_fingerprint"] == version
        server.until(lambda wanted: wanted["folded"] == version)
    assert server.running.metric("kudos_engine_restarts_total") == 3, "one of them found no folder"


def test_off(folding: Callable[..., Folding]) -> None:
    server = folding(KUDOS_FOLD="false")
    version = server.promoted()
    time.sleep(0.8)
    assert (server.wanted["folded"], server.wanted["serving"], server.shelf()) == (None, version, [])
