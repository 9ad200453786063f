"""What operators are told over HTTP: plans before they are carried out, the audit log, runs and their reports."""

from collections.abc import Callable

from deploy import policies
from feedback.schema import Policy, RolloutEvent, TrainingRun
from server.identity import revoke_key
from tests.server.conftest import ForkedServer


def test_a_dry_run_says_what_would_be_done_and_does_nothing(forked: Callable[..., ForkedServer]) -> None:
    running = forked().start()
    with running.store.write() as session:
        base = policies.everything(session)[0].version
        row = {"version": "v1-0a", "number": 1, "kind": "adapter", "state": "accepted", "path": "none", "digest": "d"}
        session.add(Policy(**row, base_version=base))
    with running.client() as client:
        plan = client.post("/v1/rollouts", json={"version": "v1-0a", "dry_run": True}).json()
        assert plan["sentence"] == f"v1-0a goes from 0% to 5% of users, beside {base}."
        assert (plan["object"], plan["action"], plan["to_share"]) == ("rollout.plan", "start", 0.05)
        assert client.post("/v1/rollouts/current/advance", json={"dry_run": True}).status_code == 409
        nothing = {"object": "list", "data": [], "chain": {"events": 0, "head": "0" * 64, "broken": None}}
        assert client.get("/v1/rollouts/events").json() == nothing

        assert client.post("/v1/rollouts", json={"version": "v1-0a", "reason": "for a test"}).json()["share"] == 0.05
        for action in ("advance", "hold", "promote", "rollback"):
            told = client.post(f"/v1/rollouts/current/{action}", json={"dry_run": True}).json()
            assert told["action"] == action
            assert "v1-0a" in told["sentence"]
        current = client.get("/v1/rollouts/current").json()
        assert (current["state"], current["share"], current["plan"]["steps"][0]) == ("canary", 0.05, 0.05)
        log = client.get("/v1/rollouts/events").json()
        (event,) = log["data"]
        told = (event["action"], event["reason"], event["candidate_version"])
        assert told == ("start", "for a test", "v1-0a")
        assert log["chain"] == {"events": 1, "head": event["hash"], "broken": None}
        with running.store.write() as session:
            session.get_one(RolloutEvent, event["id"]).reason = "something else"
        assert client.get("/v1/rollouts/events").json()["chain"]["broken"] == event["id"]


def test_the_steps_are_those_of_the_plan(forked: Callable[..., ForkedServer]) -> None:
    """Those by which the evidence is judged: a step of another size would not have been shown to be safe."""
    running = forked(KUDOS_ROLLOUT_STEPS="[0.01, 0.02, 0.1, 1]").start()
    with running.store.write() as session:
        base = policies.everything(session)[0].version
        row = {"version": "v1-0a", "number": 1, "kind": "adapter", "state": "accepted", "path": "none", "digest": "d"}
        session.add(Policy(**row, base_version=base))
    with running.client() as client:
        assert client.get("/v1/policies").json()["steps"] == [0.01, 0.02, 0.1, 1.0]
        assert client.post("/v1/rollouts", json={"version": "v1-0a"}).json()["share"] == 0.01
        told = [client.post("/v1/rollouts/current/advance", json={"dry_run": True}).json()["to_share"]]
        told += [client.post("/v1/rollouts/current/advance").json()["share"] for _ in range(3)]
        assert told == [0.02, 0.02, 0.1, 1.0]


def test_a_report_opens_by_a_link_for_its_own_address_alone(forked: Callable[..., ForkedServer]) -> None:
    running = forked().start()
    report = running.home / "runs" / "run-1" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>Report</h1>")
    with running.store.write() as session:
        session.add(TrainingRun(id="run-1", report_path="runs/run-1/report.html", metrics={"ppo": [{"reward": 1.0}]}))
        session.add(TrainingRun(id="run-2", report_path="operator.key"))
        session.add(TrainingRun(id="run-3", report_path="runs/../operator.key"))
    with running.client() as client:
        listed = client.get("/v1/training/runs").json()["data"]
        assert {each["id"] for each in listed} == {"run-1", "run-2", "run-3"}
        assert not any({"metrics", "config"} & set(each) for each in listed)
        run = client.get("/v1/training/runs/run-1").json()
        assert run["metrics"]["ppo"] == [{"reward": 1.0}]
        shown = client.get("/v1/training/runs/run-1/report")
        assert shown.text == "<h1>Report</h1>"
        assert shown.headers["content-security-policy"].startswith("sandbox; default-src 'none';")
        for elsewhere in ("run-2", "run-3", "run-4"):
            assert client.get(f"/v1/training/runs/{elsewhere}/report").status_code == 404
        assert client.get("/v1/training/runs/run-4").status_code == 404
    ticket = run["report_url"].partition("=")[2]
    with running.client() as stranger:
        del stranger.headers["authorization"]
        assert stranger.get(run["report_url"]).text == "<h1>Report</h1>"
        for other in ("/v1/training/runs/run-2/report", "/v1/training/runs", "/v1/policies"):
            assert stranger.get(f"{other}?ticket={ticket}").status_code == 401, other
        late = ticket.replace(".", ".9", 1)
        for bad in (ticket[:-1], late, "", "a.b.c", "é.1.é", ticket.partition(".")[0]):
            answer = stranger.get("/v1/training/runs/run-1/report", params={"ticket": bad})
            assert answer.status_code == 401, bad
        assert answer.json()["error"]["code"] == "invalid_ticket"
        assert stranger.get("/v1/training/runs/run-1/report").status_code == 403
        with running.store.write() as session:
            revoke_key(session, ticket.partition(".")[0])
        assert stranger.get(run["report_url"]).status_code == 401
