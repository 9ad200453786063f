"""`kudos bench learn` from its votes to its line, with a real engine and few of everything."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from trainer.config import TrainingConfig

CONFIG = TrainingConfig.model_validate(
    {
        "threads": 1,
        "reward_model": {"epochs": 1},
        "ppo": {"iterations": 1, "batch_size": 32},
        "evaluation": {"prompts": 8, "set_replies": 1},
        "gate": {"min_prompts": 1, "min_win_rate_lower": 0, "min_judge_win_rate": 0, "min_held_out_accuracy_lower": 0,
                 "max_set_fall": 1},
    }
)  # fmt: skip
PROGRAM = """
import json, sys
from trainer.config import TrainingConfig
from trainer.tiny.learn_bench import LearnConfig, learn
training = TrainingConfig.model_validate_json(sys.argv[1])
print(json.dumps(learn(LearnConfig("warm", 5, 0.0, 0.0, votes=100, rounds=1, judged=40, training=training))))
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_policy_is_judged_by_the_taste_against_the_first_one() -> None:
    ended = subprocess.run(  # in a process of its own, since an engine in this one would stay for the other tests
        [sys.executable, "-c", PROGRAM, CONFIG.model_dump_json()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    line: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    assert line["votes"] == 100
    (learned,) = line["rounds"]
    assert sum(learned["votes"].values()) == 100
    assert learned["accepted"], learned["refusals"]
    rate, low, high = line["win_rate"]
    assert low < rate < high
    assert rate < line["win_rate_at_best"] < 1
    assert line["kl_nats"] == learned["kl_nats"]
    assert learned["fits"] > 0.7
    assert set(learned["sets"]) == {"helpful", "truthful", "harmless"}
    accuracy, low, high = line["reward_model_accuracy"]
    assert 0 < low < accuracy < high < 1
