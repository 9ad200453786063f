"""What every part of kudos shares: where its home folder is and which database holds the log.

Values come from the environment (prefix `KUDOS_`). They are read once, checked, and passed on explicitly.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="KUDOS_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path.home() / ".kudos")
    """Everything that kudos writes is below this folder."""

    database_url: SecretStr | None = None
    """A SQLAlchemy URL; a PostgreSQL URL carries a password, so it never shows. Unset: SQLite in the home folder."""

    consent_default: bool = True
    """Whether votes of users who have not said anything may train. Each user's own choice wins."""

    burst_votes_per_minute: int = Field(default=30, ge=0)
    """More votes of one user within a minute are a burst: nobody reads so fast, so they do not train. 0: none are."""

    retention_days: int | None = Field(default=None, ge=1)
    """`kudos feedback expire` deletes conversations that had no new reply for so many days. Unset: kept for ever."""

    @property
    def database(self) -> str:
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'kudos.db'}"

    @property
    def policies_folder(self) -> Path:
        return self.home / "policies"

    @property
    def runs_folder(self) -> Path:
        return self.home / "runs"

    @property
    def logs_folder(self) -> Path:
        return self.home / "logs"
