"""TRL's PPO on the same prompts, model and settings, to be timed beside ours: `kudos bench ppo --against PYTHON`.

Runs in a Python of its own, which has TRL 1.12 (the last release with PPO) and nothing of kudos:

    python -m venv trl && trl/bin/pip install trl==1.12.0

It reads a JSON object with the settings and the prompts from standard input, and prints one line like ours.
"""

import json
import os
import resource
import sys
import tempfile
import time
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each iteration ended: the first one warms up and is not counted."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    asked = json.load(sys.stdin)
    batch, folder = asked["batch"], asked["model"]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = Dataset.from_dict({"input_ids": asked["prompts"]})
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16) for _ in range(2)
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            output_dir=output,
            per_device_train_batch_size=batch // asked["minibatches"],
            gradient_accumulation_steps=1,
            num_mini_batches=asked["minibatches"],
            total_episodes=asked["episodes"] + batch,
            num_ppo_epochs=asked["epochs"],
            response_length=asked["response_len"],
            local_rollout_forward_batch_size=batch,
            learning_rate=1e-6,
            report_to="none",
            num_sample_generations=0,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            stop_token="eos" if asked["natural"] else None,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=prompts,
            eval_dataset=prompts.select(range(8)),
            callbacks=[clock],
        )
        trainer.train()
    seconds = clock.ends[-1] - clock.ends[0]
    line = {
        "method": "trl",
        "natural": asked["natural"],
        "episodes": asked["episodes"],
        "seconds": round(seconds, 3),
        "episodes_per_second": round(asked["episodes"] / seconds, 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
