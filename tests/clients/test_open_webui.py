"""Open WebUI's own server with kudos as its only backend: models, chat, streams, stop, tools, and whose words they are.

Its page is not driven; the calls here are the ones that its page makes. Set up as docs/api.md tells operators to.
"""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from feedback.schema import Reply, ReplyState
from tests.clients.conftest import INSTALLED
from tests.server.conftest import Running, end, free_port, wait_for
from tests.server.test_tools import ASKED, WEATHER

START_SECONDS = 600.0  # it makes its database first, and imports for a minute


@pytest.fixture(scope="module")
def webui(real: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Signed in as its first user, who is its administrator."""
    home, port = tmp_path_factory.mktemp("open-webui"), free_port()
    environment = os.environ | {
        "DATA_DIR": str(home),
        "OPENAI_API_BASE_URLS": f"{real.url}/v1",
        "OPENAI_API_KEYS": real.operator_key,
        "ENABLE_OLLAMA_API": "False",
        # Models without tools: else its page offers some forty of its own with each message.
        "DEFAULT_MODEL_PARAMS": json.dumps({"function_calling": "legacy"}),
        "ENABLE_PERSISTENT_CONFIG": "False",
        "WEBUI_SECRET_KEY": uuid.uuid4().hex,
        # No model hub, and nobody is told.
        "OFFLINE_MODE": "True",
        "RAG_EMBEDDING_ENGINE": "openai",
        "ENABLE_VERSION_UPDATE_CHECK": "False",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    }
    with (home / "open-webui.log").open("wb") as log:
        process = subprocess.Popen(
            [INSTALLED / "open-webui" / "venv" / "bin" / "open-webui", "serve", "--host=127.0.0.1", f"--port={port}"],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
            wait_for(lambda: healthy(client, process, home), START_SECONDS, "Open WebUI to be ready")
            yield signed_in(client)
    finally:
        end(process)


def healthy(client: httpx.Client, process: subprocess.Popen[bytes], home: Path) -> bool:
    assert process.poll() is None, (home / "open-webui.log").read_text()[-4000:]
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        time.sleep(0.5)
        return False


def signed_in(client: httpx.Client) -> httpx.Client:
    who = {"name": "Ada", "email": "ada@example.com", "password": uuid.uuid4().hex}
    client.headers["authorization"] = f"Bearer {client.post('/api/v1/auths/signup', json=who).json()['token']}"
    return client


def connect(webui: httpx.Client, server: Running, headers: dict[str, str] | None = None) -> None:
    connection = {"0": {"headers": headers}} if headers else {}
    answer = webui.post(
        "/openai/config/update",
        json={
            "ENABLE_OPENAI_API": True,
            "OPENAI_API_BASE_URLS": [f"{server.url}/v1"],
            "OPENAI_API_KEYS": [server.operator_key],
            "OPENAI_API_CONFIGS": connection,
        },
    )
    assert answer.status_code == 200, answer.text
    assert webui.get("/api/models").status_code == 200  # it looks again


class Chat:
    """One question in a chat of Open WebUI's, as its page asks it: answered in the background, and kept there."""

    def __init__(self, webui: httpx.Client, text: str, model: str = "kudos-tiny", **params: Any) -> None:
        self._webui = webui
        asked, self._answer = str(uuid.uuid4()), str(uuid.uuid4())
        messages = {
            asked: {
                "id": asked,
                "parentId": None,
                "childrenIds": [self._answer],
                "role": "user",
                "content": text,
                "models": [model],
            },
            self._answer: {
                "id": self._answer,
                "parentId": asked,
                "childrenIds": [],
                "role": "assistant",
                "content": "",
                "model": model,
            },
        }
        history = {"currentId": self._answer, "messages": messages}
        made = webui.post("/api/v1/chats/new", json={"chat": {"title": "", "models": [model], "history": history}})
        self.id = made.json()["id"]
        begun = webui.post(
            "/api/chat/completions",
            json={
                "model": model,
                "stream": True,
                "messages": [{"role": "user", "content": text}],
                "params": params,
                "chat_id": self.id,
                "id": self._answer,
                "assistant_message_id": self._answer,
                "user_message": messages[asked],
                "session_id": "a-page",
                "background_tasks": {},
            },
        )
        assert begun.status_code == 200, begun.text
        (self.task_id,) = begun.json()["task_ids"]

    def answer(self) -> dict[str, Any]:
        kept = self._webui.get(f"/api/v1/chats/{self.id}").json()
        return dict(kept["chat"]["history"]["messages"][self._answer])

    def done(self) -> dict[str, Any]:
        found: dict[str, Any] = wait_for(lambda: (a := self.answer()).get("done") and a, 120, "the answer")
        return found

    def stop(self) -> None:
        answer = self._webui.post(f"/api/tasks/stop/{self.task_id}")
        assert answer.status_code == 200, answer.text


def newest(running: Running) -> Reply | None:
    with running.store.read() as session:
        return session.exec(select(Reply).order_by(col(Reply.created_at).desc(), col(Reply.id).desc()).limit(1)).first()


def test_it_lists_the_model(webui: httpx.Client) -> None:
    assert [model["id"] for model in webui.get("/api/models").json()["data"]] == ["kudos-tiny"]


def test_its_api_answers_at_once_and_in_a_stream(webui: httpx.Client) -> None:
    body = {"model": "kudos-tiny", "messages": [{"role": "user", "content": "Hello!"}]}
    whole = webui.post("/api/chat/completions", json=body).json()
    assert whole["choices"][0]["message"]["content"]
    with webui.stream("POST", "/api/chat/completions", json=body | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    said = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(said)


def test_its_page_gets_an_answer(webui: httpx.Client, real: Running) -> None:
    answer = Chat(webui, "Hello!").done()
    assert "error" not in answer, answer
    kept = newest(real)
    assert kept is not None
    assert kept.state == ReplyState.COMPLETE
    assert answer["content"].strip() == kept.text.strip()


def test_its_stop_button_ends_the_generation(webui: httpx.Client, real: Running) -> None:
    for _ in range(20):  # even a hot reply may end first
        before = newest(real)
        chat = Chat(webui, "Tell me everything", temperature=2.0, max_tokens=900)
        wait_for(lambda b=before: newest(real) != b, 60, "the reply to begin")
        time.sleep(0.3)
        chat.stop()
        kept = wait_for(lambda: (r := newest(real)) and r.state != ReplyState.STREAMING and r, 60, "the reply to end")
        if kept.state != ReplyState.COMPLETE:
            assert kept.state == ReplyState.STOPPED
            return
    pytest.fail("no reply was long enough to be stopped")


def test_an_error_is_shown_in_the_servers_words(webui: httpx.Client) -> None:
    answer = Chat(webui, "x " * 5000).done()
    assert "this model takes" in answer["error"]["content"]


def test_without_its_setting_a_model_that_has_no_tools_says_so(webui: httpx.Client) -> None:
    answer = Chat(webui, "Hello!", function_calling="native").done()
    assert "has no tools" in answer["error"]["content"]


def test_its_users_are_users_here(webui: httpx.Client, real: Running) -> None:
    connect(webui, real, {"X-Kudos-User": "{{USER_ID}}"})
    try:
        Chat(webui, "Who am I?").done()
        kept = newest(real)
        assert kept is not None
        assert kept.user_id == f"operator/{webui.get('/api/v1/auths/').json()['id']}"
    finally:
        connect(webui, real)


def test_tools_pass_through(webui: httpx.Client, real: Running, caller: Running) -> None:
    connect(webui, caller)
    try:
        (model,) = [each["id"] for each in webui.get("/api/models").json()["data"]]
        body = {"model": model, "messages": ASKED, "tools": [WEATHER]}
        choice = webui.post("/openai/chat/completions", json=body).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Ulm"}
    finally:
        connect(webui, real)
