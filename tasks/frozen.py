"""The base of every settings class."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Settings: immutable, unknown keys refused, defaults checked like given values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )
