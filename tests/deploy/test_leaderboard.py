"""The leaderboard from real logs on both databases: whose choices count, what they come to, how looks are taken out."""

import json
import math

import numpy as np
import pytest
from sqlmodel import select
from typer.testing import CliRunner

import kudos
from deploy.leaderboard import LOOKS, By, Choice, board, choices_of
from feedback.schema import Choice as Said
from feedback.schema import PolicyKind, Reply, Vote
from feedback.store import Store
from tests.deploy.rows import add_policy, compare

NO_LOOKS = (0.0,) * len(LOOKS)


@pytest.fixture
def versions(store: Store) -> tuple[str, str, str]:
    with store.write() as session:
        return add_policy(session, 0, PolicyKind.BASE), add_policy(session, 1), add_policy(session, 2)


def test_choices_that_count(store: Store, versions: tuple[str, str, str]) -> None:
    base, one, two = versions
    with store.write() as session:
        compare(session, "ann", base, one, Said.LEFT)
        compare(session, "bob", two, one, Said.BOTH_BAD)
        compare(session, "cem", base, base, Said.LEFT)
        compare(session, "dan", base, two, None)
        quarantined = compare(session, "eve", base, two, Said.LEFT)
        mixed = compare(session, "fay", base, two, Said.LEFT)
        row = session.exec(select(Vote).where(Vote.target_id == quarantined)).one()
        row.quarantined = True
        for reply in session.exec(select(Reply).where(Reply.comparison_id == mixed, Reply.side == "left")):
            reply.mixed_versions = [base, two]
    with store.read() as session:
        found = choices_of(session)
    assert sorted((each.user, each.left, each.right, each.choice) for each in found) == [
        ("ann", base, one, "left"),
        ("bob", two, one, "both_bad"),
    ]
    assert all(each.looks == NO_LOOKS for each in found), "both replies say the same"


def test_prompts_are_ranked_as_policies_are(store: Store, versions: tuple[str, str, str]) -> None:
    """Two replies of one policy with two prompts are a choice between prompts, and between no two policies."""
    base, one, _ = versions
    with store.write() as session:
        between = compare(session, "ann", base, base, Said.LEFT)
        compare(session, "bob", base, one, Said.LEFT)
        for reply in session.exec(select(Reply).where(Reply.comparison_id == between)):
            reply.prompt_version = {"left": "warm-1", "right": None}[str(reply.side)]
    with store.read() as session:
        [prompts] = choices_of(session, By.PROMPT)
        [policies] = choices_of(session)
    assert (prompts.user, prompts.left, prompts.right, prompts.winner) == ("ann", "warm-1", "none", "warm-1")
    assert (policies.user, policies.winner) == ("bob", base)


def test_rows_and_pairs_agree_with_the_log(store: Store, versions: tuple[str, str, str]) -> None:
    base, one, two = versions
    with store.write() as session:
        for user in range(12):
            compare(session, f"u{user}", *((base, one) if user % 2 else (one, base)), Said.LEFT)
            compare(session, f"u{user}", one, two, (Said.TIE, Said.LEFT, Said.BOTH_BAD)[user % 3])
    with store.read() as session:
        found = board(choices_of(session))
    assert json.loads(json.dumps(found)) == found
    assert (found["choices"], found["users"]) == (24, 12)
    rows = {row["name"]: row for row in found["data"]}
    assert {name: rows[one][name] for name in ("choices", "users", "wins", "losses", "ties", "both_bad")} == {
        "choices": 24, "users": 12, "wins": 10, "losses": 6, "ties": 4, "both_bad": 4,
    }  # fmt: skip
    assert sum(row["raw"]["strength"] for row in found["data"]) == pytest.approx(0.0, abs=1e-9)
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert pairs[base, one]["first_win_rate"] == 0.5
    assert (pairs[one, two]["first_wins"], pairs[one, two]["votes"], pairs[one, two]["users"]) == (4, 12, 12)
    assert pairs[one, two]["first_win_rate"] == pytest.approx((4 + 0.5 * 8) / 12)
    assert found["effects"]["raw"]["left"]["estimate"] > 0.5, "whoever stood on the left was chosen"


def test_ranks_need_bounds_that_do_not_overlap() -> None:
    def rows(users: int, won: float) -> list[Choice]:
        said = [n < won * users for n in range(users)]
        return [
            Choice(
                f"u{n}", *(("a", "b") if n % 2 else ("b", "a")), "left" if (n % 2 == 1) == left else "right", NO_LOOKS
            )
            for n, left in enumerate(said)
        ]

    clear, unclear, few = board(rows(200, 0.8)), board(rows(200, 0.52)), board(rows(8, 0.9))
    assert [(row["name"], row["raw"]["rank"]) for row in clear["data"]] == [("a", 1), ("b", 2)]
    assert {row["raw"]["rank"] for row in unclear["data"]} == {1}
    assert {row["raw"]["rank"] for row in few["data"]} == {None}
    assert few["data"][0]["raw"]["win_rate_lower"] is None
    a = clear["data"][0]["raw"]
    assert 0.5 < a["win_rate_lower"] < a["win_rate"] < a["win_rate_upper"] < 1.0
    assert board([]) == {"choices": 0, "users": 0, "data": [], "pairs": [], "effects": None}


def test_who_is_liked_for_length_alone_is_no_better_where_lengths_are_alike() -> None:
    """`long` mostly writes longer replies; people prefer longer ones, whoever wrote them."""
    rng, rows = np.random.default_rng(3), []
    for n in range(1500):
        gap = float(rng.normal(math.log(2), 0.7))  # of the logarithms: twice as long on average
        long_won = rng.random() < 1 / (1 + math.exp(-1.5 * gap))
        left, right = ("long", "brief") if n % 2 else ("brief", "long")
        said = "tie" if n % 7 == 0 else "left" if long_won == (left == "long") else "right"
        rows.append(Choice(f"u{n}", left, right, said, (gap if left == "long" else -gap, 0.0, 0.0, 0.0)))
    found = board(rows)
    places = {row["name"]: row for row in found["data"]}
    assert places["long"]["raw"]["lower"] > 0.1
    assert places["long"]["controlled"]["lower"] < 0.0 < places["long"]["controlled"]["upper"]
    assert found["effects"]["controlled"]["length"]["lower"] > 0.5
    assert set(found["effects"]["controlled"]) == {"left", "length", "tie"}, "what never differs has no effect"


def test_looks() -> None:
    text = "## Hours\n- we open at **nine**!\n1. not on `Sunday`！\n"
    assert LOOKS["length"](text) == math.log1p(len(text))
    assert LOOKS["lists"](text) == math.log1p(2)
    assert LOOKS["emphasis"](text) == math.log1p(5)
    assert LOOKS["exclamations"](text) == math.log1p(2)


def test_the_command(store: Store, versions: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_DATABASE_URL", store.url.render_as_string(hide_password=False))
    monkeypatch.setenv("COLUMNS", "120")
    run = CliRunner()
    empty = run.invoke(kudos.app, ["leaderboard"])
    assert (empty.exit_code, "kudos policy matchup" in empty.output) == (0, True)
    base, one, _ = versions
    with store.write() as session:
        for user in range(30):
            compare(session, f"u{user}", base, one, Said.RIGHT if user % 3 else Said.LEFT)
    shown = run.invoke(kudos.app, ["leaderboard"]).output
    assert shown.index(one) < shown.index(base), shown
    assert "30 choices of 30 users" in shown
    body = json.loads(run.invoke(kudos.app, ["leaderboard", "--json"]).output)
    assert (body["by"], body["data"][0]["name"]) == ("policy", one)
