"""What the demo leaves behind: its JSON, its report, its one line."""

import json
from pathlib import Path

from trainer.tiny.crowd import Live
from trainer.tiny.demo import DemoConfig, Round, Story, tell

REWARD_MODEL = {"accuracy": 0.7, "lower": 0.6, "upper": 0.8}
PPO = [{"kl_nats": 0.1 * at, "votes_reward": 0.2 * at} for at in range(3)]


def _story() -> Story:
    return Story(
        DemoConfig("list", 3),
        first="v0-aaaa",
        before=(0.5, 0.45, 0.55),
        rounds=[
            Round(
                1,
                {"left": 5, "up": 2},
                "v1-bbbb",
                True,
                [],
                (0.7, 0.6, 0.8),
                100.0,
                {"kl_nats": 2.25},
                PPO,
                REWARD_MODEL,
            ),
            Round(
                2,
                {"right": 4},
                "v2-cccc",
                False,
                ["it grew"],
                (0.5, 0.0, 1.0),
                90.0,
                {"kl_nats": 9.0},
                PPO,
                REWARD_MODEL,
            ),
        ],
        swaps=[Live(finished=40, longest_gap_seconds=0.1234, versions={"v0-aaaa": 30, "v1-bbbb": 10})],
        seconds=400.0,
    )


def test_the_line_speaks_of_the_last_policy_that_served() -> None:
    line = _story().summary()
    assert line["win_rate_after"] == [0.7, 0.6, 0.8]
    assert (line["votes"], line["rounds"], line["kl_nats"], line["accepted"]) == (11, 2, 2.25, [True, False])
    assert (line["streams_failed"], line["streams_finished"], line["longest_gap_seconds"]) == (0, 40, 0.123)


def test_nothing_served_is_no_progress() -> None:
    story = _story()
    story.rounds = story.rounds[1:]
    assert story.summary()["win_rate_after"] == [0.5, 0.45, 0.55]


def test_everything_is_written_and_the_report_shows_the_plots(tmp_path: Path) -> None:
    report = tell(_story(), tmp_path)
    kept = json.loads((tmp_path / "demo.json").read_text())
    assert kept["swaps"][0]["versions"] == {"v0-aaaa": 30, "v1-bbbb": 10}
    html = report.read_text()
    assert html.count("<svg") == 4  # win rates, reward against KL of both rounds, votes
    assert "v2-cccc" in html
    assert "it grew" in html
