"""Schemathesis asks whatever the OpenAPI description allows, and what it forbids, and goes from one call to the next.

No status that is not described, no 5xx, no body that is not of its shape, no invalid request that is taken, and no
valid one that is refused. How it is run is in schemathesis.toml. `make test-clients` does more of it, and with the real
engine.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.shapes import chat, leaderboard, operators, rollouts, users
from tests.server.conftest import ROOT, ForkedServer, Running, ask
from tests.server.test_openapi import assert_documented
from tests.server.test_tools import folder  # noqa: F401 - a fixture

# So that a description that holds for every deployment holds for this one: its bounds are the widest that can be set.
WIDEST = {
    "KUDOS_MAX_CHOICES": "128",
    "KUDOS_MAX_TOKENS": "1000000000",
    "KUDOS_MAX_STREAMS_PER_USER": "512",
    "KUDOS_MAX_LORAS": "32",
    "FAKE_SAYS": "Hello! <tool_call>",
    "FAKE_TOKEN_SECONDS": "0",
}


def schemathesis(running: Running, *options: str, user: str = "tester", seconds: float = 600) -> str:
    """Its report. Fails with it where Schemathesis found something."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            "run",
            f"{running.url}/openapi.json",
            f"--header=Authorization: Bearer {running.operator_key}",
            f"--header=X-Kudos-User: {user}",
            "--header=Host: kudos.test",  # not this machine, so that who has no key is nobody
            "--checks=all",
            "--no-color",
            "--no-shrink",
            "--seed=1",
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    found = "\n".join(line[:400] for line in done.stdout.splitlines())  # a body that was made up may fill pages
    assert done.returncode == 0, found[-20_000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_server_does_what_its_description_says(
    forked: Callable[..., ForkedServer],
    folder: Path,  # noqa: F811
) -> None:
    running = forked(FAKE_PROMPTS=str(folder), **WIDEST).start()
    # An erased user is gone for ever, so that is another one's run.
    schemathesis(running, "--phases=examples,fuzzing", "--max-examples=4", "--exclude-operation-id=erase")
    schemathesis(running, "--phases=examples", "--include-operation-id=erase", user="leaver")
    assert running.metric("kudos_chat_requests_total", status="500") == 0


def test_what_it_answers_is_described_to_the_last_field(forked: Callable[..., ForkedServer]) -> None:
    with forked().start().client() as client:
        reply = ask(client)
        compared = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "hello"}]}).json()
        voted = client.put(f"/v1/replies/{reply['id']}/feedback", json={"thumb": "up"}).json()
        chosen = client.put(f"/v1/comparisons/{compared['id']}/choice", json={"choice": "left"}).json()
        version = reply["system_fingerprint"]
        shapes_of = {
            "/v1/conversations": users.Heads,
            f"/v1/conversations/{reply['conversation_id']}": users.Conversation,
            f"/v1/conversations/{compared['conversation_id']}": users.Conversation,
            f"/v1/replies/{reply['id']}": users.OneReply,
            "/v1/me": users.Me,
            "/v1/me/export": users.Export,
            "/v1/policies": operators.Policies,
            f"/v1/policies/{version}": operators.PolicyWithLineage,
            "/v1/matchup": rollouts.Matchup,
            "/v1/training/runs": operators.Runs,
            "/v1/leaderboard": leaderboard.Leaderboard,
            "/v1/status": operators.Status,
            "/health/ready": operators.Ready,
        }
        for path, shape in shapes_of.items():
            assert_documented(shape.model_validate(client.get(path).json()), path)
        assert_documented(chat.Completion.model_validate(reply))
        assert_documented(chat.Comparison.model_validate(compared))
        assert_documented(users.Voted.model_validate(voted))
        assert_documented(users.Chosen.model_validate(chosen))
