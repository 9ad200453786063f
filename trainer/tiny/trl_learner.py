"""TRL's PPO, paid by kudos' own reward: `kudos bench gold --against PYTHON`.

Runs in a Python of its own, which has TRL 1.12 (the last release with PPO) and nothing of kudos: see `trl_peer.py`.
The reward model stays where it is. What TRL takes for a reward model asks for the scores over a pipe, so that both
trainings are paid, and measured, by the same lines of code:

    {"prompts": [...], "replies": [...]}   out; [score, ...] back: token ids, a reply without its padding
    {"policy": FOLDER, "episodes": N}      out after an iteration; an empty list back once it is measured

It reads the settings and the prompts from the first line of standard input.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

PIPE = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # TRL prints to standard output, which is the pipe's


def ask(question: dict[str, Any]) -> list[float]:
    PIPE.write(json.dumps(question) + "\n")
    PIPE.flush()
    answer: list[float] = json.loads(sys.stdin.readline())
    return answer


class Asking(nn.Module):
    """In the place of the backbone that TRL expects below a linear head: "hidden states" that already are the score."""

    def __init__(self, prompt_length: int) -> None:
        super().__init__()
        self.prompt_length = prompt_length

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        def unpadded(part: slice) -> list[list[int]]:
            rows = zip(input_ids[:, part], attention_mask[:, part].bool(), strict=True)
            return [row[seen].tolist() for row, seen in rows]

        scores = ask(
            {
                "prompts": unpadded(slice(None, self.prompt_length)),
                "replies": unpadded(slice(self.prompt_length, None)),
            }
        )
        states_BT1 = torch.tensor(scores)[:, None, None].expand(*input_ids.shape, 1)
        return SimpleNamespace(hidden_states=(states_BT1,))


class AskedReward(nn.Module):
    base_model_prefix = "model"

    def __init__(self, prompt_length: int) -> None:
        super().__init__()
        self.model = Asking(prompt_length)
        self.score = nn.Identity()


class Measured(TrainerCallback):  # type: ignore[misc]
    """Shows the policy after every so many iterations."""

    def __init__(self, policy: Any, folder: Path, every: int, batch: int) -> None:
        self.policy, self.folder, self.every, self.batch = policy, folder, every, batch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.policy.save_pretrained(self.folder)
            ask({"policy": str(self.folder), "episodes": state.global_step * self.batch})


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    folder, batch = asked["model"], asked["batch"]
    torch.manual_seed(asked["seed"])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = Dataset.from_dict({"input_ids": asked["prompts"]})
    # All prompts to one length, so that it is known where a reply begins.
    length = max(map(len, asked["prompts"]))
    collator = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=length)
    # fp32, as its optimiser is: rates of this size are lost on a bf16 weight.
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            output_dir=output,
            seed=asked["seed"],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            num_mini_batches=asked["minibatches"],
            total_episodes=asked["episodes"],
            num_ppo_epochs=asked["epochs"],
            response_length=asked["response_tokens"],
            local_rollout_forward_batch_size=batch,
            temperature=asked["temperature"],
            learning_rate=asked["learning_rate"],
            kl_coef=asked["kl_coefficient"],
            report_to="none",
            num_sample_generations=0,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            stop_token="eos",  # noqa: S106 - a token of text
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=AskedReward(length),
            value_model=value,
            train_dataset=prompts,
            eval_dataset=prompts.select(range(8)),
            data_collator=collator,
            callbacks=[Measured(policy, Path(output) / "policy", asked["every"], batch)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
