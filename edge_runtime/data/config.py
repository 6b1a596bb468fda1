"""``[data]`` of edge.toml: where the private rows are, and how they are written."""

from __future__ import annotations

from typing import Annotated

import msgspec

AUTO = "auto"
CORRECTIONS = "corrections.jsonl"
"""Where corrections are, beside edge.toml, if it does not say otherwise."""
_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t"}


class RowFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How rows are written; ``[data]`` of edge.toml and ``[eval_data]`` of job.toml have these settings.

    Attributes:
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label (a label's name, or its index).
        prompt_field: causal-lm: name of the field or column with the prompt.
        completion_field: causal-lm: name of the field or column with the text that should follow.
        messages_field: causal-lm: name of the field or column with a conversation, in place of the two; where it is not
            given, a job that began without the setting goes on as the same job. See ``conversation_field``.
        encoding: how characters are stored, a name that Python knows (``windows-1252``); ``auto``: UTF-8, or UTF-16
            where the file's beginning shows it.
        delimiter: CSV: the character between two columns, or ``tab``; ``auto``: what the header shows.
        quote: CSV: the character around a text; ``auto``: a double quote, or a single one where only that fits.
        columns: CSV without a header line: the names of its columns, in order; empty: the first line is the header.
        label_names: what the file writes for a label, and the label that it means; it comes before names and indexes.
    """

    text_field: str = "text"
    label_field: str = "label"
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    messages_field: str | msgspec.UnsetType = msgspec.UNSET
    encoding: str = AUTO
    delimiter: str = AUTO
    quote: str = AUTO
    columns: list[str] = []
    label_names: dict[str, str] = {}

    def __post_init__(self) -> None:
        for field, value in (("delimiter", self.delimiter_character), ("quote", self.quote)):
            if value != AUTO and (len(value) != 1 or value in "\r\n"):
                raise ValueError(f"{field} is {value!r}, which is not one character")
        if self.quote != AUTO and self.quote == self.delimiter_character:
            raise ValueError(f"delimiter and quote are both {self.quote!r}")

    @property
    def conversation_field(self) -> str:
        """Name of the field or column with a conversation."""
        return "messages" if isinstance(self.messages_field, msgspec.UnsetType) else self.messages_field

    @property
    def delimiter_character(self) -> str:
        """The delimiter itself, or ``auto``."""
        return _NAMED_DELIMITERS.get(self.delimiter, self.delimiter)


class DataConfig(RowFormat, frozen=True, forbid_unknown_fields=True):
    """Where the device's private rows are, and how they are written; RowFormat has the other fields.

    Attributes:
        path: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, or a directory with a folder of text
            files for each label; relative to the configuration file.
        transform: ``module:function`` of the owner's own Python, which gets each row and returns the row to use, or
            None to leave it out; see transform.py. Empty: rows are used as they are.
        corrections: rows that were added on the device (corrections.py), a ``.jsonl`` file relative to the
            configuration file, which need not be there; edge.toml without it: ``corrections.jsonl``. Empty: none.
        most_corrections: so many are kept, the newest ones.
    """

    path: str
    transform: str = ""
    corrections: str = ""
    most_corrections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrections and not self.corrections.endswith(".jsonl"):
            raise ValueError(f"corrections is {self.corrections!r}, which does not end in .jsonl")
        module, colon, function = self.transform.rpartition(":")
        if self.transform and not (module and colon and function.isidentifier()):
            raise ValueError(f"transform is {self.transform!r}, which is not module:function")


def how_rows(written: RowFormat | None, path: str) -> DataConfig:
    """Return where rows are that are written so; None: by the defaults."""
    settings = RowFormat() if written is None else written
    return DataConfig(path, **{name: getattr(settings, name) for name in RowFormat.__struct_fields__})
