"""How good kudos-tiny is at its world: held-out dialogues, sampled replies, the judge's verdicts.

Samples with transformers at the temperature that is served (0.7, top_p 1). Not the evaluation of trained policies
(trainer/evaluation.py): this one knows the world's grammar.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from trainer.evaluation_sets import EvaluationSet
from trainer.tiny.dialogues import make_dialogues
from trainer.tiny.judge import Verdict, judge_ask
from trainer.tiny.raters import TASTES, prompts, satisfies
from trainer.tokens import Message, decode, load_tokenizer, render_prompt

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 96
SAMPLES_PER_PROMPT = 20


@dataclass(frozen=True)
class Sampled:
    """One reply, and whether it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Report:
    """Shares are of `dialogues`. right: of the replies that name an answer. good_phrasings: distinct well-formed and
    fitting replies among SAMPLES_PER_PROMPT samples of one prompt, over `varied_prompts` prompts."""

    dialogues: int
    well_formed: float
    fits: float
    right: float
    finished: float
    mean_reply_tokens: float
    varied_prompts: int
    good_phrasings_mean: float
    good_phrasings_min: int
    prompts_with_six: float
    fits_by_language: dict[str, float]
    satisfied: dict[str, float]
    sets: dict[str, tuple[float, float, float]]
    failures: list[str]
    seconds: float

    @property
    def passes(self) -> bool:
        """The bar for a built-in model."""
        return self.well_formed >= 0.95 and self.fits >= 0.90 and self.good_phrasings_mean >= 6

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passes": self.passes}


def sample_replies(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    seed: int,
    batch: int = 100,
    on_reply: Callable[[int], None] = lambda count: None,
) -> list[Sampled]:
    """One reply to each conversation. Like prompt lengths share a batch; results come in the order given."""
    import torch

    torch.manual_seed(seed)
    rendered = [render_prompt(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(rendered)), key=lambda index: len(rendered[index]))
    replies: dict[int, Sampled] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(rendered[index]) for index in chosen)
        ids_BT = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        seen_BT = torch.zeros((len(chosen), longest), dtype=torch.long)
        for row, index in enumerate(chosen):
            ids_BT[row, longest - len(rendered[index]) :] = torch.tensor(rendered[index])
            seen_BT[row, longest - len(rendered[index]) :] = 1
        with torch.inference_mode():
            out_BT = model.generate(
                input_ids=ids_BT, attention_mask=seen_BT, do_sample=True, temperature=TEMPERATURE, top_p=1.0, top_k=0,
                max_new_tokens=MAX_NEW_TOKENS,
            )  # fmt: skip
        for row, index in enumerate(chosen):
            reply = out_BT[row, longest:].tolist()
            finished = tokenizer.eos_token_id in reply
            kept = reply[: reply.index(tokenizer.eos_token_id)] if finished else reply
            replies[index] = Sampled(decode(tokenizer, kept), finished)
        on_reply(len(chosen))
    return [replies[index] for index in range(len(rendered))]


def evaluate(
    folder: Path,
    *,
    seed: int = 0,
    dialogues: int = 500,
    varied_prompts: int = 50,
    sets: Sequence[EvaluationSet] = (),
    on_reply: Callable[[int], None] = lambda count: None,
) -> Report:
    """Sample and judge. `on_reply` is told how many more replies are done, of dialogues + 20 * varied_prompts, and one
    to each case of the evaluation sets."""
    import torch
    from transformers import AutoModelForCausalLM

    started = time.monotonic()
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).eval()
    held_out = list(make_dialogues(seed, dialogues, "held_out"))
    replies = sample_replies(model, tokenizer, [each.prompt for each in held_out], seed=seed, on_reply=on_reply)
    verdicts = [
        judge_ask(dialogue.ask, reply.text) for dialogue, reply in zip(held_out, replies, strict=True)
    ]  # fmt: skip
    failures = [
        f"{dialogue.prompt[-1]['content']!r} ({dialogue.ask.intent}) -> {reply.text!r}"
        for dialogue, reply, verdict in zip(held_out, replies, verdicts, strict=True)
        if not (verdict.well_formed and verdict.fits)
    ]

    varied = prompts(seed, varied_prompts)
    asked = [prompt for prompt in varied for _ in range(SAMPLES_PER_PROMPT)]
    again = sample_replies(model, tokenizer, [each.messages for each in asked], seed=seed + 1, on_reply=on_reply)
    good: dict[int, set[str]] = {index: set() for index in range(varied_prompts)}
    for index, (prompt, reply) in enumerate(zip(asked, again, strict=True)):
        verdict = judge_ask(prompt.ask, reply.text)
        if verdict.well_formed and verdict.fits and verdict.right is not False:
            good[index // SAMPLES_PER_PROMPT].add(reply.text)
    counts = [len(texts) for texts in good.values()]

    passed = {}
    for each in sets:
        cases = [case.as_dicts() for case in each.cases]
        said = sample_replies(model, tokenizer, cases, seed=seed + 2, on_reply=on_reply)
        passed[each.name] = each.share([reply.text for reply in said], 1)

    def share(test: Callable[[Verdict], bool]) -> float:
        return mean(test(verdict) for verdict in verdicts)

    named = [verdict.right for verdict in verdicts if verdict.right is not None]
    return Report(
        dialogues=dialogues,
        well_formed=share(lambda v: v.well_formed),
        fits=share(lambda v: v.fits),
        right=mean(named) if named else 0.0,
        finished=mean(reply.finished for reply in replies),
        mean_reply_tokens=mean(len(tokenizer.encode(reply.text, add_special_tokens=False)) for reply in replies),
        varied_prompts=varied_prompts,
        good_phrasings_mean=mean(counts),
        good_phrasings_min=min(counts),
        prompts_with_six=mean(count >= 6 for count in counts),
        fits_by_language={
            language: mean(v.fits for d, v in zip(held_out, verdicts, strict=True) if d.ask.language == language)
            for language in ("en", "zh")
        },
        satisfied={taste: share(lambda v, taste=taste: satisfies(taste, v)) for taste in TASTES},  # type: ignore[misc]
        sets=passed,
        failures=failures,
        seconds=time.monotonic() - started,
    )
