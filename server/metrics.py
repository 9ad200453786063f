"""What kudos measures about itself, in the names that dashboards and alerts use. vLLM's own stand beside them.

One registry per process, shared with vLLM, so that one scrape has both. No label holds a user, a request or a text. The
label `track` is stable or canary; `none` where no policy had a part, as in a request that was refused.
"""

from __future__ import annotations

import math
from functools import lru_cache

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
TRACKS = ("stable", "canary")
NO_TRACK = "none"
STAGES = ("starting", "samples", "reward model", "supervised", "ppo", "evaluation", "publishing", "done")

requests_total = Counter(
    "kudos_chat_requests_total",
    "HTTP requests, by route and by what they came to: the status, or that of the error that broke their stream off.",
    ["route", "status", "track"],
)
request_duration_seconds = Histogram(
    "kudos_chat_request_duration_seconds",
    "From the request to the last byte of its reply.",
    ["track"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80),
)
time_to_first_token_seconds = Histogram(
    "kudos_chat_time_to_first_token_seconds",
    "From the request to its first token.",
    ["track"],
    buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
time_per_output_token_seconds = Histogram(
    "kudos_chat_time_per_output_token_seconds",
    "Mean gap between a reply's tokens after the first.",
    ["track"],
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
reply_tokens = Histogram(
    "kudos_chat_reply_tokens",
    "Tokens of a reply.",
    ["track"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
)
streams_active = Gauge("kudos_chat_streams_active", "Replies that are being generated.")
stream_aborts_total = Counter("kudos_chat_stream_aborts_total", "Replies that did not end by themselves.", ["reason"])
tokens_total = Counter("kudos_chat_tokens_total", "Tokens, by type: prompt, cached, reply.", ["type"])
safety_flags_total = Counter(
    "kudos_chat_safety_flags_total",
    "What the safety filter flagged, by stage (input, output) and by what found it (rules, classifier).",
    ["track", "stage", "source"],
)
safety_check_seconds = Histogram(
    "kudos_chat_safety_check_seconds",
    "From asking a check of the safety filter that runs beside the streams to its answer.",
    ["source"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
replies_total = Counter("kudos_chat_replies_total", "Replies, by how they ended.", ["track", "state"])

refusals_total = Counter("kudos_chat_refusals_total", "Replies whose words refuse to answer.", ["track"])
rate_limited_total = Counter(
    "kudos_chat_rate_limited_total",
    "Requests refused because a minute's worth was used up, by unit (requests, tokens) and whose (key, user).",
    ["unit", "whose"],
)

shadow_replies_total = Counter(
    "kudos_shadow_replies_total",
    "Replies of a candidate in shadow: complete, failed, discarded (what the person got says nothing beside it), "
    "dropped (not begun, as the engine was busy).",
    ["result"],
)
votes_total = Counter(
    "kudos_feedback_votes_total", "Votes as they were answered.", ["kind", "value", "track", "result"]
)
vote_delay_seconds = Histogram(
    "kudos_feedback_vote_delay_seconds",
    "From the end of a reply to its first vote.",
    buckets=(1, 5, 15, 60, 300, 3600, 86400),
)
harm_flags_total = Counter(
    "kudos_feedback_harm_flags_total", "Flags of replies as harmful; one that is said again counts once.", ["track"]
)
effective_votes = Gauge("kudos_feedback_effective_votes", "Votes that count.")
ledger_waiting = Gauge("kudos_storage_writes_waiting", "Writes that no transaction has picked up yet.")
write_seconds = Histogram(
    "kudos_storage_write_seconds",
    "From submitting a write to its being durable.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
disk_free_bytes = Gauge("kudos_storage_disk_free_bytes", "Free space where the home folder lies.")
disk_size_bytes = Gauge("kudos_storage_disk_size_bytes", "All space where the home folder lies.")
database_bytes = Gauge("kudos_storage_database_bytes", "What the database takes, by its own account.")

policy_swaps_total = Counter(
    "kudos_policy_swaps_total",
    "Policies brought into the engine: an adapter, full weights, an adapter folded into the base (fold) or no longer "
    "(unfold). `waited`: it was put off, as replies did not end in time.",
    ["kind", "result"],
)
policy_swap_seconds = Histogram(
    "kudos_policy_swap_duration_seconds",
    "Phases of bringing a policy into the engine: verify, load, prove.",
    ["phase"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
policy_info = Gauge("kudos_policy_info", "1 for each policy that serves, by track.", ["version", "track"])
policy_folded = Gauge("kudos_policy_folded", "1 while an adapter is part of the base's weights.")
policy_missing = Gauge("kudos_policy_missing", "Policies that this server should hold and does not.")
replicas = Gauge(
    "kudos_replicas",
    "Servers of this deployment, by their rows: in_step (ready, and it holds all that is wanted), behind, silent.",
    ["state"],
)
mixed_replies_total = Counter("kudos_mixed_policy_replies_total", "Replies that a full swap cut in two.")
rollout_share_ratio = Gauge("kudos_rollout_share_ratio", "Share of users that each track has.", ["track"])
rollout_effect = Gauge(
    "kudos_rollout_effect",
    "How much better the candidate is than the stable policy, by measure: 0 where they are alike, NaN while unknown.",
    ["metric", "bound"],
)
rollout_guardrail = Gauge(
    "kudos_rollout_guardrail",
    "Times, length and refusals of the candidate: over the stable policy's, refusals less it. NaN while unknown.",
    ["metric", "bound"],
)
rollout_sample_ratio_mismatch = Gauge(
    "kudos_rollout_sample_ratio_mismatch",
    "1 while the arms have not the users that they should have, and for an hour after a rollout went back for it.",
)
rollout_decisions_total = Counter(
    "kudos_rollout_decisions_total", "Looks at the running rollout, by what the evidence said.", ["decision"]
)
engine_up = Gauge("kudos_engine_up", "1 while the engine answers.")
engine_restarts_total = Counter("kudos_engine_restarts_total", "Times that a dead engine was started again.")

training_running = Gauge("kudos_training_running", "1 while a training run is under way.")
training_stage = Gauge("kudos_training_stage", "1 for the stage that the newest run is in, or ended in.", ["stage"])
training_progress_ratio = Gauge("kudos_training_progress_ratio", "How far the newest run is.")
training_runs = Gauge("kudos_training_runs", "Training runs, by state.", ["state"])
training_votes_waiting = Gauge("kudos_training_votes_waiting", "Votes since the last run that published a policy.")
training_last_success_timestamp_seconds = Gauge(
    "kudos_training_last_success_timestamp_seconds", "When a run last published a policy; 0: never."
)


def _of_last_success(name: str, documentation: str) -> Gauge:
    gauge = Gauge(f"kudos_training_{name}", f"Of the last run that published a policy: {documentation}")
    gauge.set(math.nan)  # until there is one; 0 would be a measurement
    return gauge


training_measures = {
    # where the run's row has it: (section, name)
    ("", "votes"): _of_last_success("votes", "votes that it used."),
    ("samples", "burst_votes"): _of_last_success("burst_votes", "votes in quarantine: they came in bursts."),
    ("evaluation", "held_out_accuracy"): _of_last_success(
        "held_out_accuracy_ratio", "the reward model's accuracy on votes of people that it has not seen."
    ),
    ("evaluation", "win_rate"): _of_last_success("win_rate_ratio", "win rate over the policy that served."),
    ("evaluation", "judge_win_rate"): _of_last_success("judge_win_rate_ratio", "win rate by the second judge."),
    ("evaluation", "reward_gain"): _of_last_success(
        "reward_gain", "mean reward less that of the policy that served, in standard deviations of the reference."
    ),
    ("evaluation", "judge_gain"): _of_last_success("judge_gain", "as reward_gain, by the second judge."),
    ("evaluation", "kl_nats"): _of_last_success("kl_nats", "KL to the reference, per reply."),
    ("ppo", "reward"): _of_last_success("reward", "mean reward in the last iteration of PPO."),
    ("ppo", "entropy_nats_per_token"): _of_last_success("entropy_nats", "entropy per token in the last iteration."),
    ("ppo", "clip_fraction"): _of_last_success("clip_ratio", "share of clipped tokens in the last iteration."),
    ("ppo", "explained_variance"): _of_last_success(
        "explained_variance_ratio", "of the critic, in the last iteration."
    ),
}

# What has not happened yet is 0 from the start: the first time it does, an increase is seen.
for _track in TRACKS:
    harm_flags_total.labels(_track)
    refusals_total.labels(_track)
for _result in ("complete", "failed", "discarded", "dropped"):
    shadow_replies_total.labels(_result)
for _source in ("rules", "classifier"):
    safety_flags_total.labels(NO_TRACK, "input", _source)
    for _track in TRACKS:
        safety_flags_total.labels(_track, "output", _source)
safety_check_seconds.labels("classifier")
for _reason in ("engine", "storage", "disconnected", "slow_reader", "drained", "content_filter", "safety"):
    stream_aborts_total.labels(_reason)
for _unit in ("requests", "tokens"):
    for _whose in ("key", "user"):
        rate_limited_total.labels(_unit, _whose)
for _phase in ("verify", "load", "prove"):
    policy_swap_seconds.labels(_phase)
for _kind in ("adapter", "full", "fold", "unfold"):
    for _result in ("proved", "not_proved", "refused", "failed", "waited"):
        policy_swaps_total.labels(_kind, _result)


# To look a series up takes longer than to count in it: for what each request and each vote counts in.
request_series = lru_cache(maxsize=1024)(requests_total.labels)
vote_series = lru_cache(maxsize=256)(votes_total.labels)


def scrape() -> bytes:
    return generate_latest(REGISTRY)
