"""Whether a reply refuses to answer: by its words, in English and Chinese. A count to compare policies by, not a judge.

The one place that says so: the log, the metrics, the rollout's guardrail and the gate count alike.
"""

import re

REFUSAL = re.compile(
    r"\b(i (can(?:no|')t|am not able to|will not|won't) (help|answer|do|talk)|as an ai)\b"
    r"|我(不能|无法|没法)(帮|回答|谈)",
    re.I,
)


def refuses(text: str) -> bool:
    return REFUSAL.search(text) is not None
