"""Whether TRL learns from what `kudos feedback export` wrote: loads each file, and takes a step of its trainer.

Runs in a Python of its own that has TRL (1.12 when this was written), as `kudos bench ppo --against` does:

    for style in conversational plain; do
        kudos feedback export --format preference --style $style -o preference-$style.parquet
        kudos feedback export --format unpaired --style $style -o unpaired-$style.jsonl
    done
    trl/bin/python scripts/trl_reads.py trainer/tiny/model preference-*.parquet unpaired-*.jsonl
"""

import sys
import tempfile
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl.data_utils import is_conversational
from trl.experimental.kto import KTOConfig, KTOTrainer


def main(model: str, files: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for file in files:
        kind = "parquet" if file.endswith(".parquet") else "json"
        rows = load_dataset(kind, data_files=file, split="train")
        paired = "chosen" in rows.column_names
        trainers = ((DPOTrainer, DPOConfig), (RewardTrainer, RewardConfig)) if paired else ((KTOTrainer, KTOConfig),)
        for trainer, config in trainers:
            kind_of_model = AutoModelForSequenceClassification if trainer is RewardTrainer else AutoModelForCausalLM
            options = {"num_labels": 1} if trainer is RewardTrainer else {}
            learner = kind_of_model.from_pretrained(model, **options)
            learner.config.pad_token_id = tokenizer.pad_token_id
            with tempfile.TemporaryDirectory() as output:
                arguments = config(
                    output_dir=output, max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True,
                    bf16=False, save_strategy="no", logging_steps=1,
                )  # fmt: skip
                step = trainer(model=learner, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
            how = "conversational" if is_conversational(rows[0]) else "plain"
            print(f"{Path(file).name}: {len(rows)} rows, {how}; {trainer.__name__}: loss {step.training_loss:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
