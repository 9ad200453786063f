"""What `kudos bench samples` times is a log that samples come of."""

from feedback.samples_bench import once


def test_a_made_up_log_becomes_samples() -> None:
    figures = once(600)
    assert (figures["votes"], figures["split"]) == (600, "user_and_prompt")
    assert figures["samples"] >= 600 - figures["dropped"]
    assert set(figures["kinds"]) == {"thumb", "pair", "correction"}
