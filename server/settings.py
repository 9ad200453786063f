"""Every setting of the server. Read once from the environment (prefix `KUDOS_`), checked, and passed on explicitly."""

from __future__ import annotations

import ipaddress
import os
from functools import cached_property
from pathlib import Path

from pydantic import Field

from deploy.errors import NoSuchModel
from deploy.models import TINY, model_folder
from feedback.settings import Settings as FeedbackSettings
from server.errors import BadConfiguration

MOST_LORAS = 32
"""The widest that `max_loras` can be set."""


class Settings(FeedbackSettings):
    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address needs a key first: `kudos key create`."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 lets the system choose, and the line that says kudos is ready names it."""

    model: str = TINY
    """The model that the deployment starts from: kudos-tiny (built in), a folder, or a name on a model hub."""

    kv_cache_gib: int = Field(default=1, ge=1, le=1024)
    """On CPU: memory for the engine's KV cache. On GPU see `gpu_memory_share`."""

    gpu_memory_share: float = Field(default=0.85, gt=0.05, le=0.98)
    """On GPU: the share of its memory that the engine takes."""

    engine_threads: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1), ge=1, le=512)
    """On CPU: threads that compute. One core is left to HTTP by default."""

    compile_model: bool = False
    """Compile the model at start: about 25 s longer to ready, and up to half as fast again for a single stream."""

    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """GPUs that one replica's model is split over."""

    max_model_len: int | None = Field(default=None, ge=64)
    """Longest prompt and reply together, in tokens. Unset: what the model was made for."""

    max_loras: int = Field(default=4, ge=1, le=MOST_LORAS)
    """Adapter policies that may serve in one batch: stable, candidate and the two of a matchup are four."""

    max_lora_rank: int = Field(default=32, ge=8, le=512)
    """Largest rank of an adapter. The engine rounds up to 8, 16, 32, 64, 128, 256, 320 or 512."""

    default_max_tokens: int = Field(default=512, ge=1)
    """Length limit of a reply whose request names none."""

    max_tokens: int = Field(default=4096, ge=1)
    """The most that a request may ask for."""

    default_temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    """Sampling temperature of a request that names none."""

    max_body_bytes: int = Field(default=1 << 20, ge=1 << 10, le=1 << 28)
    """Larger request bodies are refused with 413 before they are read."""

    max_messages: int = Field(default=512, ge=1)
    """Messages in one request."""

    max_choices: int = Field(default=8, ge=1, le=128)
    """Replies that one request may ask for with `n`."""

    max_streams: int = Field(default=512, ge=1)
    """Replies being generated at once, over all users; beyond it 503 and Retry-After."""

    max_streams_per_user: int = Field(default=64, ge=1)
    """Replies being generated at once for one user; beyond it 429 and Retry-After."""

    requests_per_minute_per_key: int = Field(default=0, ge=0)
    """Chat requests and comparisons that one API key may send in a minute; 0: no limit. Each replica counts alone."""

    requests_per_minute_per_user: int = Field(default=0, ge=0)
    """The same for one user, also where a key speaks for many; 0: no limit."""

    tokens_per_minute_per_key: int = Field(default=0, ge=0)
    """Tokens of prompts and replies that one API key may use in a minute; 0: no limit. Each replica counts alone."""

    tokens_per_minute_per_user: int = Field(default=0, ge=0)
    """The same for one user, also where a key speaks for many; 0: no limit."""

    comparison_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """How often the page answers a message with two replies to choose between, unasked. 0: only where a user asks."""

    keepalive_seconds: float = Field(default=5.0, gt=0.0, le=60.0)
    """How often a stream that has nothing to say yet sends a comment, so that proxies keep it open."""

    send_timeout_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)
    """A reader that takes nothing for this long is given up, and its generation with it."""

    write_timeout_seconds: float = Field(default=10.0, gt=0.0, le=120.0)
    """Longest wait for the database to make a vote or a reply durable; then 503."""

    drain_seconds: float = Field(default=20.0, ge=0.0, le=3600.0)
    """After SIGTERM no new stream starts; those that run have this long to end."""

    reconcile_seconds: float = Field(default=0.5, gt=0.0, le=60.0)
    """How often the replica looks at which policies it should hold."""

    swap_wait_seconds: float = Field(default=0.5, ge=0.0, le=60.0)
    """Before a full swap: how long to wait for streams to end. Those that go on are marked as mixed."""

    fold: bool = True
    """Fold a promoted adapter into the base's weights once nothing else is wanted beside it; see decision 0016."""

    fold_after_seconds: float = Field(default=60.0, ge=0.0, le=86400.0)
    """How long an adapter has been alone before it is folded. Until then a rollback costs nothing."""

    fold_wait_seconds: float = Field(default=2.0, ge=0.0, le=8.0)
    """Longest that new replies wait for the running ones to end, before a fold or the way back from one."""

    shadow_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """While a candidate is in shadow: the part of people's prompts that it answers too, in the background."""

    max_shadow_streams: int = Field(default=4, ge=1)
    """Replies in shadow being generated at once; what is drawn beyond it is dropped, and counted."""

    shadow_below_streams: int = Field(default=16, ge=1)
    """No reply in shadow begins while more replies than this are being generated for people."""

    engine_restarts: int = Field(default=5, ge=0, le=100)
    """How often in a row a dead engine is started again before the server gives up and ends."""

    safety_file: Path | None = None
    """The safety filter's rules and classifiers, a TOML file; see docs/safety.md. Unset: nothing is checked."""

    secure_cookies: bool = False
    """Mark the cookie of a browser on this machine as HTTPS only; others have no cookie but a key."""

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def operator_key_path(self) -> Path:
        return self.home / "operator.key"

    @cached_property  # asked several times for each reply, and whether the folder is there takes a system call
    def model_name(self) -> str:
        """What clients put into `model`."""
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    def model_folder(self) -> Path:
        """Where the model's files are; a hub model is fetched first.

        Raises:
            BadConfiguration: the model is neither built in, nor a folder, nor on a hub that can be reached.
        """
        try:
            return model_folder(self.model)
        except NoSuchModel as error:
            raise BadConfiguration(str(error)) from error
