"""How a rollout is judged: its steps, what must be shown at each, and who takes the next one. From KUDOS_ROLLOUT_..."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from deploy.errors import BadPlan
from deploy.rollout import STEPS


class RolloutSettings(BaseSettings):
    """One plan for every rollout of a deployment; frozen, so that nobody moves a margin in the middle of a look."""

    model_config = SettingsConfigDict(env_prefix="KUDOS_ROLLOUT_", frozen=True, extra="ignore")

    automatic: bool = False
    """Take the next step without a person, when the evidence allows it. Rolling back on harm is automatic always."""

    watch: bool = True
    """Act on the running rollout inside the server. Turn it off where `kudos rollout controller` runs by itself; the
    server then only looks, for its metrics."""

    look_seconds: float = Field(default=15.0, gt=0.0, le=86400.0)
    """How often the evidence is looked at. Looking more often costs no certainty."""

    steps: tuple[float, ...] = STEPS
    """Shares of users that a candidate takes, one after another, as a JSON list that rises to 1."""

    min_minutes: float = Field(default=60.0, ge=0.0)
    """A step lasts at least this long, counted from the last event of the rollout."""

    min_votes: int = Field(default=100, ge=1)
    """Votes and choices that must have been cast on replies of a step before the next one."""

    shadow_replies: int = Field(default=100, ge=1)
    """Replies that a candidate must have given in shadow before anybody meets it."""

    win_rate_margin: float = Field(default=0.05, gt=0.0, le=0.5)
    """How far below one half the candidate's win rate may be, over all users, and still count as no worse."""

    net_votes_margin: float = Field(default=0.1, gt=0.0, le=1.0)
    """How many net votes (up less down) per reply may be lost, over all users, and still count as no worse."""

    first_token_ratio: float = Field(default=1.5, gt=1.0)
    """A candidate that is shown to take more than so many times as long to its first token is rolled back."""

    per_token_ratio: float = Field(default=1.5, gt=1.0)
    """The same for the time of each further token."""

    length_ratio: float = Field(default=1.25, gt=1.0)
    """The same for replies that are more than so many times as long, or so many times as short."""

    refusals_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """The same for refusals, as a share of replies more than the stable policy's."""

    uniform_pairs: float = Field(default=0.2, gt=0.0, le=1.0)
    """Of an automatic matchup's comparisons, the part that is drawn from all pairs alike."""

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    """The chance that a candidate which is as good as the stable policy is ever rolled back, in a whole rollout."""

    @field_validator("steps")
    @classmethod
    def _rises_to_one(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        rises = all(low < high for low, high in pairwise((0.0, *steps)))
        if not rises or steps[-1:] != (1.0,):
            raise ValueError(
                f"shares must rise from above 0 to 1, not {list(steps)}: for example [0.01, 0.05, 0.25, 1]"
            )
        return steps


def read_plan() -> RolloutSettings:
    """Raises BadPlan, which names the variable and the mend."""
    try:
        return RolloutSettings()
    except SettingsError as error:  # a value that should be JSON and is not
        raise BadPlan(f'{error}: KUDOS_ROLLOUT_STEPS is a JSON list, such as "[0.05, 0.25, 0.5, 1]"') from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in fault["loc"][:1]).upper()
        raise BadPlan(f"KUDOS_ROLLOUT_{name}={fault['input']!r}: {fault['msg']}") from None
