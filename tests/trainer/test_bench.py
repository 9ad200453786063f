"""What the benches print and draw of their lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from trainer.bench import app, table

ROW = {
    "taste": "list", "seed": 3, "rounds": 2, "votes": 2400, "win_rate_before": [0.5, 0.45, 0.55],
    "win_rate_after": [0.8, 0.75, 0.85], "win_rate_by_round": [[0.7, 0.65, 0.75], [0.8, 0.75, 0.85]], "kl_nats": 2.5,
    "accepted": [True, True],
    "streams_failed": 0, "streams_finished": 300, "longest_gap_seconds": 0.4, "seconds": 420.0,
}  # fmt: skip


def test_the_table_has_a_row_for_each_demo() -> None:
    assert table([ROW]).splitlines()[-1] == (
        "| list | 3 | 2400 | 0.500 [0.450, 0.550] | 0.700 [0.650, 0.750], then 0.800 [0.750, 0.850] | 2.50 "
        "| 0 of 300 | 0.40 | 7.0 |"
    )
    refused = table([ROW | {"accepted": [True, False]}])
    assert "| 0.700 [0.650, 0.750], then refused |" in refused


def test_a_demo_that_is_done_is_not_run_again_and_a_weak_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "demo.jsonl"
    arguments = ["demo", "--tastes", "list", "--seeds", "3", "--out", str(out)]
    out.write_text(json.dumps(ROW) + "\n")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    out.write_text(json.dumps(ROW | {"win_rate_after": [0.74, 0.7, 0.8]}) + "\n")
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_a_bench_that_is_told_to_end_ends_what_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kudos", "bench", "demo", "--out", str(tmp_path / "demo.jsonl")]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL) as bench:
        started: list[psutil.Process] = []
        while not any("up" in each.cmdline() for each in started):
            assert bench.poll() is None
            time.sleep(0.1)
            started = psutil.Process(bench.pid).children(recursive=True)
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert not [each for each in started if each.is_running()]


def test_what_was_learned_is_a_table_over_seeds(tmp_path: Path) -> None:
    out = tmp_path / "learn.jsonl"
    line = {"taste": "warm", "noise": 0.2, "contrary": 0.1, "seed": 0, "reward_model_accuracy": [0.9, 0.8, 0.95]}
    figures: dict[str, object] = {
        "win_rate": [0.8, 0.7, 0.9],
        "win_rate_at_best": 0.93,
        "win_rate_decided": [0.95, 0.9, 1],
        "kl_nats": 2,
        "rounds": [],
    }
    rows = [line | figures, line | figures | {"seed": 1, "win_rate": [0.9, 0.8, 1]}, line | {"noise": 0, "contrary": 0}]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = CliRunner().invoke(app, ["learn", "--table-only", "--out", str(out)]).output
    assert told.splitlines()[2:] == [
        "| warm | 20% | 10% | 2 | 0.850 (0.800 to 0.900) | 0.930 (0.930 to 0.930) | 0.950 (0.950 to 0.950) "
        "| 2.000 (2.000 to 2.000) | 0.900 (0.900 to 0.900) |",
        "| warm, the reward model alone | 0% | 0% | 1 |  |  |  |  | 0.900 (0.900 to 0.900) |",
    ]
    assert CliRunner().invoke(app, ["learn", "--table-only"]).exit_code == 2


def _curve(*gold: float) -> list[dict[str, object]]:
    return [
        {"episodes": 96 * place, "kl_nats": float(place), "gold": [value, value - 0.03, value + 0.03]}
        for place, value in enumerate(gold)
    ]


def test_gold_draws_every_line_of_its_file_and_trains_nothing_for_it(tmp_path: Path) -> None:
    out, plot = tmp_path / "gold.jsonl", tmp_path / "images" / "gold.svg"
    line = {"taste": "warm", "seed": 0, "kudos": _curve(0.5, 0.7, 0.8), "trl": _curve(0.5, 0.6, 0.55)}
    out.write_text(json.dumps(line) + "\n" + json.dumps(line | {"seed": 1, "kudos": _curve(0.5, 0.75)}) + "\n")
    result = CliRunner().invoke(app, ["gold", "--plot-only", "--out", str(out), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    drawn = plot.read_text()
    assert drawn.startswith("<svg")
    assert drawn.count("kudos, warm") == drawn.count("TRL 1.12, warm") == 1, "one entry for each, however many seeds"
    assert len(out.read_text().splitlines()) == 2
