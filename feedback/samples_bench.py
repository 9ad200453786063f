"""How long a log of votes takes to become training samples, and how much memory: `kudos bench samples`.

The log is made up, written around the ledger in bulk, and removed afterwards. Of its votes 60 % are thumbs (one in
twenty with a correction) and 40 % choices, each on a reply or a comparison of its own; one prompt in twenty is shared.
A vote comes each second, so nobody is in haste. What is timed is what a run does: whose votes are bursts, the split,
each user's weight, and every sample whole, one after another.
"""

import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from feedback.bursts import find_bursts, votes_in
from feedback.ids import prompt_digest
from feedback.packing import pack_ids, pack_logprobs
from feedback.samples import plan_samples, stream
from feedback.settings import Settings
from feedback.store import open_store

_VOTES_EACH = 50  # of a user
_PROMPT_TOKENS, _REPLY_TOKENS = 40, 64
_WORDS = tuple(
    "the of order parcel late please thank you refund blue red size two days hello sum is seven plus and".split()  # noqa: SIM905
)
_START = datetime(2026, 1, 1)  # noqa: DTZ001 - as SQLite has it
_AT = _START.isoformat(" ", "microseconds")
_CHUNK = 20_000  # rows of one statement


def measure(votes: int, rounds: int = 3) -> dict[str, Any]:
    """A log of `votes` between two readings of a tenth of that, `rounds` times, each in a process of its own.

    The seconds are those of the round whose log took the median time; `seconds_over_a_tenth`, how many times as long
    that is as a tenth takes, is the median of the rounds: one reading of seconds says little on a machine whose speed
    changes by the minute.
    """
    with tempfile.TemporaryDirectory(prefix="kudos-samples-") as folder:
        small, large = (Path(folder, str(size)) for size in (votes // 10, votes))
        fill(small, votes // 10)
        fill(large, votes)
        taken: list[tuple[dict[str, Any], float]] = []
        for _ in range(rounds):
            before, whole, after = (_in_a_process(home) for home in (small, large, small))
            taken.append((whole, (before["seconds"] + after["seconds"]) / 2))
    ratios = [round(whole["seconds"] / tenth, 2) for whole, tenth in taken]
    middle, tenth = sorted(taken, key=lambda each: float(each[0]["seconds"]))[len(taken) // 2]
    return {
        "votes": votes,
        **middle,
        "rounds": rounds,
        "seconds_of_a_tenth": round(tenth, 2),
        "seconds_over_a_tenth": median(ratios),
        "each_over_a_tenth": ratios,
    }


def _in_a_process(home: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "feedback.samples_bench", str(home)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own
    return dict(json.loads(ended.stdout))


def read(home: Path) -> dict[str, Any]:
    """What it takes to turn the log in `home` into samples."""
    settings = _settings(home)
    store = open_store(settings)
    started, computed = time.perf_counter(), time.process_time()
    kinds: Counter[str] = Counter()
    with store.read() as session:
        left_out = votes_in(find_bursts(session, settings.burst_votes_per_minute))
        looked, looking = time.perf_counter(), time.process_time() - computed
        plan = plan_samples(session, consent_default=True, left_out=left_out)
        planned, weights = time.perf_counter(), plan.weights(100.0)
        for sample in stream(session, plan.assign, consent_default=True, weights=weights, left_out=left_out):
            kinds[sample.kind] += 1
    ended, computed = time.perf_counter(), time.process_time() - computed
    store.close()
    return {
        "samples": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "split": plan.report.mode.value,
        "dropped": plan.report.dropped,
        "seconds": round(ended - started, 2),
        "cpu_seconds": round(computed, 2),
        "burst_votes": len(left_out),
        "burst_cpu_seconds": round(looking, 2),
        "split_seconds": round(planned - looked, 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _settings(home: Path) -> Settings:
    return Settings(home=home, database_url=None, burst_votes_per_minute=30)


def fill(home: Path, votes: int) -> None:
    """Rows as the ledger would leave them, synced once, at the end; indexes are made when all are there."""
    open_store(_settings(home)).close()
    path = home / "kudos.db"
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("synchronous = OFF", "cache_size = -200000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
        made = list(indexes)
        connection.execute("BEGIN")
        for name, _ in made:
            connection.execute(f'DROP INDEX "{name}"')
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _STATEMENTS}
        for table, row in _rows(votes):
            held = rows[table]
            held.append(row)
            if len(held) >= _CHUNK:
                connection.executemany(_STATEMENTS[table], held)
                held.clear()
        for table, held in rows.items():
            connection.executemany(_STATEMENTS[table], held)
        for _, sql in made:
            connection.execute(sql)
        connection.execute("COMMIT")
    finally:
        connection.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())  # or the disk is still at it while somebody reads


def _insert(table: str, columns: str) -> str:
    names = columns.split()
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - ours


_STATEMENTS = {
    "user_account": _insert("user_account", "id created_at consent"),
    "conversation": _insert("conversation", "id user_id title created_at updated_at"),
    "reply": _insert(
        "reply",
        "id conversation_id user_id comparison_id side created_at finished_at state messages prompt_digest "
        "prompt_token_ids text token_ids logprobs sampling policy_version arm propensity source",
    ),
    "comparison": _insert(
        "comparison", "id user_id conversation_id left_reply_id right_reply_id propensity created_at source"
    ),
    "vote": _insert(
        "vote",
        "target_kind target_id user_id revision withdrawn thumb reasons correction harmful choice quarantined "
        "created_at",
    ),
}


def _rows(votes: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    pick = random.Random(votes)
    prompt_ids = pack_ids([pick.randrange(4_000) for _ in range(_PROMPT_TOKENS)])
    replies = [_made_up(pick) for _ in range(500)]
    for number in range(max(1, votes // _VOTES_EACH)):
        yield "user_account", (f"u-{number}", _AT, None)
    for number in range(votes):
        user = f"u-{pick.randrange(max(1, votes // _VOTES_EACH))}"
        conversation, shared = f"conv-{number:032x}", pick.random() < 0.05
        words = pick.choices(_WORDS, k=20)
        question = f"what of order {pick.randrange(1_000)}?" if shared else f"{' '.join(words)} {number}?"
        messages = [{"role": "user", "content": question}]
        digest, prompt = prompt_digest(messages), json.dumps(messages)
        compared = number % 10 >= 6
        target = f"{'cmp' if compared else 'chatcmpl'}-{number:032x}"
        yield "conversation", (conversation, user, question, _AT, _AT)
        ids = [f"{target}-{side}" for side in ("left", "right")] if compared else [target]
        for side, reply in enumerate(ids):
            text, token_ids, logprobs = pick.choice(replies)
            where = (target, ("left", "right")[side]) if compared else (None, None)
            yield (
                "reply",
                (reply, conversation, user, *where, _AT, _AT, "complete", prompt, digest, prompt_ids, text, token_ids,
                 logprobs, "{}", "v1-aaaaaaaa", where[1] or "stable", 1.0, "chat"),
            )  # fmt: skip
        said: tuple[Any, ...] = (None, "[]", None, False, pick.choice(("left", "right", "tie", "both_bad")))
        if compared:
            yield "comparison", (target, user, conversation, *ids, 0.5, _AT, "chat")
        else:
            correction = replies[0][0] if pick.random() < 0.05 else None
            said = (pick.choice(("up", "down")), '["friendly"]', correction, False, None)
        at = (_START + timedelta(seconds=number)).isoformat(" ", "microseconds")
        yield "vote", ("comparison" if compared else "reply", target, user, 1, False, *said, False, at)


def _made_up(pick: random.Random) -> tuple[str, bytes, bytes]:
    ids = [pick.randrange(4_000) for _ in range(_REPLY_TOKENS)]
    return " ".join(pick.choices(_WORDS, k=48)), pack_ids(ids), pack_logprobs([-pick.random() for _ in ids])


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]))))
