"""How fast PPO runs, and where its time goes: the trainer's own loop with a real engine, on prompts of a given length.

Fixed lengths: random prompts, and replies that never end before their limit. Natural lengths: prompts of the built-in
world, whose replies end where they end. What is learned does not matter here: the learning rates are next to nothing.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trainer.backbone import Backbone
from trainer.config import PpoConfig, RewardConfig, RewardModelConfig
from trainer.iteration import Iteration
from trainer.lora import LoraAdapter
from trainer.memory import set_up_memory
from trainer.ppo import Ppo, Update
from trainer.reward_model import RewardModel
from trainer.sampler import Rollout, Sampler
from trainer.samplers import make_sampler
from trainer.tiny.raters import prompts
from trainer.tokens import load_tokenizer, render_prompt
from trainer.trainable import FullWeights
from trainer.transformers_sampler import TransformersSampler
from trainer.workers import set_cores

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "lora": {"adapted_share": 1.0, "critic": "adapter"},
    "full": {"method": "full"},
}


@dataclass(frozen=True)
class PpoBench:
    model: Path
    episodes: int
    batch: int
    prompt_len: int
    response_len: int
    epochs: int
    minibatches: int
    method: str
    natural: bool
    device: str = "cpu"


def beside_trl(bench: PpoBench, python: Path, pairs: int) -> dict[str, Any]:
    """Ours and TRL's in turn, each in a process of its own, on the same prompts. `python` has TRL 1.12.

    Raises RuntimeError where a run fails, with what it said.
    """
    told = asdict(bench) | {"model": str(bench.model), "prompts": _prompts(load_tokenizer(bench.model), bench)}
    flags = {"--natural": bench.natural, "--no-natural": not bench.natural}
    settings = {name.replace("_", "-"): str(value) for name, value in asdict(bench).items() if name != "natural"}
    ours = [sys.executable, "-m", "kudos", "bench", "ppo", *(flag for flag, on in flags.items() if on)]
    ours += [word for name, value in settings.items() for word in (f"--{name}", value)]
    theirs = [str(python), str(Path(__file__).with_name("trl_peer.py"))]
    rows: list[dict[str, Any]] = []
    for pair in range(pairs):
        runs = [(ours, ""), (theirs, json.dumps(told))]
        figures = [_run(*run) for run in (runs if pair % 2 == 0 else runs[::-1])]
        mine, other = figures if pair % 2 == 0 else figures[::-1]
        rows.append({"ours": mine, "trl": other})
    speed = [row["ours"]["episodes_per_second"] / row["trl"]["episodes_per_second"] for row in rows]
    memory = [row["ours"]["peak_memory_mib"] / row["trl"]["peak_memory_mib"] for row in rows]
    return {
        "method": bench.method,
        "natural": bench.natural,
        "reply_tokens": rows[0]["ours"]["reply_tokens"],
        "times_as_fast": [round(value, 2) for value in (median(speed), min(speed), max(speed))],
        "times_the_memory": [round(value, 3) for value in (median(memory), min(memory), max(memory))],
        "pairs": rows,
    }


def _run(command: list[str], told: str) -> dict[str, Any]:
    """The JSON object on the last line that it prints."""
    ended = subprocess.run(command, input=told, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {ended.returncode}:\n{ended.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def measure(bench: PpoBench) -> dict[str, Any]:
    """One run. The first iteration warms up and is not counted."""
    set_up_memory()
    tokenizer = load_tokenizer(bench.model)
    device = torch.device(bench.device)
    backbone = Backbone.load(bench.model, device=device)
    # With whole adapters nothing is shared: policy and critic are two models from the embeddings up, as they are with
    # `full`, whatever the reward model's layers.
    members = RewardModelConfig(adapted_share=1.0) if bench.method == "lora" else RewardModelConfig()
    config = PpoConfig(
        **METHODS[bench.method],
        iterations=1 + bench.episodes // bench.batch,
        batch_size=bench.batch,
        minibatches=bench.minibatches,
        epochs=bench.epochs,
        response_tokens=bench.response_len,
        learning_rate=1e-6,
        critic_learning_rate=1e-6,
        stop_approx_kl=1e9,
    )
    sampler = make_sampler(
        bench.model,
        device,
        end_id=tokenizer.eos_token_id,
        max_model_len=bench.prompt_len + bench.response_len + 1,
        sequences=bench.batch,
    )
    ppo = Counted(
        backbone=backbone,
        policy=FullWeights(backbone)
        if bench.method == "full"
        else LoraAdapter(backbone, config.lora, 0, backbone.first_of(config.adapted_share)),
        reward_model=RewardModel(backbone, members, seed=0),
        sampler=sampler if bench.natural else Unending(sampler),
        prompts=_prompts(tokenizer, bench),
        decode=lambda ids: str(tokenizer.decode(ids)),
        config=config,
        reward=RewardConfig(),
        seed=0,
    )
    with torch.no_grad():
        products = _products_per_second(backbone)
    ppo.step()
    ppo.count = False
    started = time.perf_counter()
    steps = [ppo.step() for _ in range(config.iterations - 1)]
    figures = _figures(bench, steps, time.perf_counter() - started)
    # The warm-up iteration had as many optimizer steps as every other one.
    update_seconds = sum(step.update_seconds for step in steps) / len(steps)
    return figures | {
        "update_gflops_per_second": round(ppo.operations / update_seconds / 1e9, 1),
        "products_gflops_per_second": round(products / 1e9, 1),
        "roofline": round(ppo.operations / update_seconds / products, 3),
    }


class Counted(Ppo):
    """The loop, which counts the operations of its updates' matrix products while it warms up, in one thread: the
    counter sees no other."""

    count = True
    operations = 0

    def _update(self, *arguments: Any) -> Update:
        if not self.count:
            return super()._update(*arguments)
        from torch.utils.flop_counter import FlopCounterMode  # loads triton, where nobody has said that it is not there

        cores = torch.get_num_threads()
        set_cores(1)
        with FlopCounterMode(display=False) as counter:
            found = super()._update(*arguments)
        set_cores(cores)
        self.operations += counter.get_total_flops()
        return found


def _products_per_second(backbone: Backbone, tokens: int = 2048, seconds: float = 1.0) -> float:
    """Operations a second of the model's own largest product, alone and again and again: the roof."""
    weight = backbone.weight("layers.0.mlp.up_proj.weight")
    x = torch.randn(tokens, weight.shape[1]).to(weight)
    times: list[float] = []

    def product() -> None:
        torch.nn.functional.linear(x, weight)
        if x.is_cuda:
            torch.cuda.synchronize()

    for _ in range(3):  # the first one sets up the kernel, which can take a second
        product()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return 2 * tokens * weight.numel() / median(times)


class Unending:
    """The sampler, with replies that do not end before their limit."""

    def __init__(self, sampler: Sampler | TransformersSampler) -> None:
        self._sampler = sampler

    def update(self, backbone: Backbone, weights: dict[str, torch.Tensor]) -> None:
        self._sampler.update(backbone, weights)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Rollout]:
        return self._sampler.sample(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed, ends=False)


def _prompts(tokenizer: Any, bench: PpoBench) -> list[list[int]]:
    return _natural_prompts(tokenizer, bench) if bench.natural else _random_prompts(len(tokenizer), bench)


def _random_prompts(vocabulary: int, bench: PpoBench) -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(10, vocabulary - 1) for _ in range(bench.prompt_len)]
        for _ in range(max(bench.episodes, bench.batch))
    ]


def _natural_prompts(tokenizer: Any, bench: PpoBench) -> list[list[int]]:
    wanted = bench.episodes + bench.batch
    found = [render_prompt(tokenizer, prompt.messages) for prompt in prompts(0, 4 * wanted)]
    return [ids for ids in found if len(ids) <= bench.prompt_len][:wanted]


def _figures(bench: PpoBench, steps: Sequence[Iteration], seconds: float) -> dict[str, Any]:
    episodes = len(steps) * bench.batch
    tokens = sum(step.reply_tokens for step in steps) * bench.batch
    parts = {name: sum(getattr(step, f"{name}_seconds") for step in steps) for name in ("rollout", "score", "update")}
    return {
        "method": bench.method,
        "natural": bench.natural,
        "episodes": episodes,
        "reply_tokens": round(tokens / episodes, 1),
        "seconds": round(seconds, 3),
        "episodes_per_second": round(episodes / seconds, 2),
        "reply_tokens_per_second": round(tokens / seconds, 1),
        "shares": {name: round(value / seconds, 3) for name, value in parts.items()},
        "optimizer_steps": sum(step.optimizer_steps for step in steps),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": torch.cuda.get_device_name() if bench.device != "cpu" else "cpu",
    } | ({"peak_gpu_memory_mib": torch.cuda.max_memory_allocated() >> 20} if bench.device != "cpu" else {})
