"""The operator's page: signed in with a key, it shows what there is, and says what it will do before it does it."""

import datetime
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from sqlmodel import select

from deploy import policies
from deploy.gate import judge
from feedback.schema import Policy, RolloutEvent, TrainingRun, TrainingSample, now
from tests.deploy.test_gate import GOOD

from .conftest import NewPage, RunningServer
from .steps import DRESSES, barriers, eventually, wear

pytestmark = [pytest.mark.browser, pytest.mark.engine]

GOOD_ONE, BAD_ONE = "v9101-0123abcd", "v9102-0123abcd"
RUN = "run-of-the-page"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
REPORT = "<!doctype html><title>as written</title><h1>Report</h1><script>document.title = 'it ran'</script>"


@pytest.fixture
def planted(server: RunningServer) -> Iterator[None]:
    """A policy that may serve, one that was refused, and the run of the first. No server can load them: none does."""
    refused = judge(GOOD).__class__(accepted=False, refusals=["The win rate is 0.1, and must be above 0.5."], flags=[])
    curve = [
        {"reward": 0.1 * at, "votes_reward": 0.12 * at, "kl_nats": 0.3 * at, "reply_tokens": 20.0} for at in range(9)
    ]
    report = server.home / "runs" / RUN / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(REPORT)
    with server.store.write() as session:
        base = policies.everything(session)[0].version
        for version, verdict in ((GOOD_ONE, judge(GOOD)), (BAD_ONE, refused)):
            row = Policy(
                version=version, number=int(version[1:5]), kind="adapter", path="none", digest=version,
                base_version=base, parent_version=base, run_id=RUN if version == GOOD_ONE else None,
            )  # fmt: skip
            session.add(row)
            session.flush()
            policies.record_verdict(session, row, GOOD, verdict)
        session.add(
            TrainingRun(
                id=RUN, state="succeeded", stage="done", progress=1.0, votes=3, policy_version=GOOD_ONE,
                message="accepted", report_path=f"runs/{RUN}/report.html", metrics={"ppo": curve},
                started_at=now() - datetime.timedelta(minutes=9),
            )
        )  # fmt: skip
        session.add(TrainingSample(run_id=RUN, vote_id=9101, user_id="u-ops", kind="thumb", split="train"))
    yield
    with server.store.write() as session:  # the server is shared
        for policy in session.exec(select(Policy).where(Policy.number > 9100)):  # type: ignore[arg-type]
            session.delete(policy)
        session.delete(session.get_one(TrainingRun, RUN))
        session.delete(session.exec(select(TrainingSample).where(TrainingSample.run_id == RUN)).one())


def last_event(server: RunningServer) -> RolloutEvent:
    with server.store.read() as session:
        return session.exec(select(RolloutEvent).order_by(RolloutEvent.id.desc())).first()  # type: ignore[union-attr, return-value]


def confirm(page: Page, plan: str, reason: str = "") -> None:
    expect(page.locator(".act-plan")).to_have_text(plan)
    if reason:
        page.get_by_label("Reason, kept in the audit log").fill(reason)
    page.locator("#act-dialog [type=submit]").click()
    expect(page.locator("#act-dialog")).to_be_hidden()


def look(page: Page, view: str) -> None:
    page.locator(f'#views a[href="#{view}"]').click()
    expect(page.locator("#view")).not_to_have_attribute("aria-busy", "true")


def test_an_operators_day(new_page: NewPage, server: RunningServer, planted: None, shot) -> None:
    page = new_page("/ops", reduced_motion="reduce")
    page.get_by_placeholder("Key").fill("sk-kudos-guess")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("refused")
    assert barriers(page) == []
    page.get_by_placeholder("Key").fill((server.home / "operator.key").read_text().strip())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Who serves")).to_be_visible()
    assert page.context.cookies() == [], "the key is in no cookie, and the page makes nobody a user"
    expect(page.locator(".card", has_text="This server")).to_contain_text("Problemsnone")

    look(page, "policies")
    expect(page.locator(".policy")).to_have_count(3)
    expect(page.locator(".policy", has_text=BAD_ONE)).to_contain_text("must be above 0.5")
    page.get_by_role("link", name=GOOD_ONE).click()
    expect(page.locator(".line")).to_contain_text(GOOD_ONE)
    expect(page.locator(".facts")).to_contain_text("1 votes of 1 users")
    expect(page.get_by_role("region", name="The gate's report")).to_contain_text("perplexity")
    shot(page, "ops-policy")

    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open the report").click()
    expect(opened.value.get_by_role("heading", name="Report")).to_be_visible()
    assert opened.value.title() == "as written", "a script in a report ran"
    opened.value.close()

    page.get_by_role("button", name="Start a rollout…").click()
    page.get_by_label("Share of users").select_option("0.25")
    base = page.locator(".line a").first.get_attribute("title")
    before = last_event(server)
    expect(page.locator(".act-plan")).to_have_text(f"{GOOD_ONE} goes to 25% of users, beside {base}.")
    shot(page, "ops-start")
    assert barriers(page) == []
    page.get_by_label("Share of users").select_option("nobody yet: it answers in the background")
    in_shadow = f"{GOOD_ONE} answers some prompts in the background, beside {base}; nobody meets it."
    expect(page.locator(".act-plan")).to_have_text(in_shadow)
    page.keyboard.press("Escape")
    assert last_event(server) == before, "asking what would be done did it"
    page.get_by_role("button", name="Start a rollout…").click()
    confirm(page, f"{GOOD_ONE} goes to 5% of users, beside {base}.", "it reads well")
    assert (last_event(server).action, last_event(server).share) == ("start", 0.05)

    look(page, "rollout")
    expect(page.locator(".shares")).to_contain_text("5% candidate")
    expect(page.locator('.steps [aria-current="step"]')).to_have_text("5%")
    expect(page.locator(".verdict")).to_contain_text("Wait")
    page.get_by_role("button", name="Hold…").focus()
    page.keyboard.press("Enter")
    confirm(page, f"{GOOD_ONE} stays at 5% of users until somebody resumes or advances. Harm still rolls it back.")
    expect(page.get_by_role("button", name="Resume…")).to_be_visible()
    page.get_by_role("button", name="Advance…").click()
    confirm(page, f"{GOOD_ONE} goes from 5% to 25% of users, beside {base}.")
    expect(page.locator('.steps [aria-current="step"]')).to_have_text("25%")
    shot(page, "ops-rollout")

    views = {"rollout": ".shares", "policies": ".policy", "training": ".run", "audit": ".figures"}
    page.locator('#views a[href="#training"]').click()
    page.locator(f'[href="#training/{RUN}"]').click()
    expect(page.locator(".plot-curves").first).to_be_visible()
    found = {"run": barriers(page)}
    shot(page, "ops-run")
    for view, drawn in views.items():
        page.locator(f'#views a[href="#{view}"]').click()
        expect(page.locator(drawn).first).to_be_visible()
        for dress in DRESSES:
            wear(page, *dress)
            found[f"{view} {dress}"] = barriers(page)
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, (
                view
            )
        shot(page, f"ops-{view}-phone-dark")
        wear(page, *DRESSES[0])
    assert {where: each for where, each in found.items() if each} == {}

    look(page, "rollout")
    page.get_by_role("button", name="Roll back…").click()
    confirm(page, f"{GOOD_ONE} leaves service; {base} serves all users again.", "end of the day")
    event = eventually(lambda: last_event(server), lambda event: event.action == "rollback")
    assert (event.action, event.reason, event.actor) == ("rollback", "end of the day", "operator")
    look(page, "audit")
    expect(page.locator(".figures tbody tr").first).to_contain_text("end of the day")
    expect(page.locator(".card").first).to_contain_text("each as it was written")

    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#key-dialog")).to_be_visible()


def test_what_the_gate_refused_is_let_in_only_by_force_and_with_a_reason(
    new_page: NewPage, server: RunningServer, planted: None
) -> None:
    page = new_page(f"/ops#policies/{BAD_ONE}")
    page.get_by_placeholder("Key").fill((server.home / "operator.key").read_text().strip())
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Start a rollout…").click()
    problem, button = page.locator("#act-dialog .field-error"), page.locator("#act-dialog [type=submit]")
    expect(problem).to_contain_text("only accepted policies meet users")
    expect(button).to_be_disabled()
    page.get_by_label("Even though the gate did not accept it").check()
    expect(problem).to_contain_text("needs a reason")
    page.get_by_label("Reason, kept in the audit log").fill("a test of the gate")
    page.keyboard.press("Tab")
    expect(page.locator(".act-plan")).to_contain_text(BAD_ONE)
    expect(button).to_be_enabled()
