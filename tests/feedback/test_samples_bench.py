"""What `kudos bench samples` times is a log that samples come of."""

from pathlib import Path

from feedback.samples_bench import fill, read


def test_a_made_up_log_becomes_samples(tmp_path: Path) -> None:
    fill(tmp_path / "log", 600)
    figures = read(tmp_path / "log")
    assert figures["split"] == "user_and_prompt"
    assert figures["samples"] >= 600 - figures["dropped"]
    assert set(figures["kinds"]) == {"thumb", "pair", "correction"}
