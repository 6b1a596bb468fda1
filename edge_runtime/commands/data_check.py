"""What ``covey-edge data check`` says of rows: one summary, as values and as lines of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.data.conversations import dialogues_of
from edge_runtime.data.examples import Row, label_counts
from edge_runtime.data.problems import SHOWN_PROBLEMS, counted, listed
from edge_runtime.data.survey import (
    Finding,
    findings_of_labels,
    findings_of_lengths,
    findings_of_repeats,
    findings_of_texts,
    lengths_of,
    repeats_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.examples import Reading
    from edge_runtime.data.problems import Places
    from edge_runtime.data.rows import Loaded


@dataclass(frozen=True)
class Checked:
    """Rows that can be used, and how they were read.

    Attributes:
        data: how.
        labels: names of the labels; None: prompts with completions, or conversations.
        source: the rows with their numbers, those left out, and what was recognised.
        own: how many rows, the first ones, are the source's own; those after them are corrections.
        loaded: the rows as tokens; None: there is no bundle.
        max_tokens: what a row has at most; None: there is no bundle.
        special: in how many rows each special token stands written out.
    """

    data: DataConfig
    labels: Sequence[str] | None
    source: Loaded | Reading[Any]
    own: int
    loaded: Loaded | None = None
    max_tokens: int | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    @property
    def used(self) -> list[Any]:
        """The rows, each a Row, a Completion or a Dialogue."""
        return list(self.source.rows if self.loaded is None else self.loaded.used)  # type: ignore[arg-type]

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each of the source's own rows."""
        return self.source.lines[: self.own]


def report_of(checked: Checked) -> tuple[dict[str, object], list[str]]:
    """Return the summary of rows, as values and as lines of text."""
    source, used, places = checked.source, checked.used, checked.source.places
    values: dict[str, object] = {"path": checked.data.path, "form": source.form, "rows": len(used)}
    problems = source.skipped
    found = (
        "all good" if not problems else f"and {counted(len(problems), 'row')} left out, because Covey cannot use them"
    )
    lines = [f"{checked.data.path}: {counted(len(used), 'row')}, {found}"]
    lines += [f"  {line}" for line in listed(problems, places)]
    lines += [f"  {note}" for note in (source.form, *source.notes)]
    counts = None
    if checked.labels is not None:
        counts = label_counts([row for row in used if isinstance(row, Row)], checked.labels)
        values["labels"] = counts
        lines += [f"  {label}: {count}" for label, count in counts.items()]
    dialogue_values, dialogue_lines = dialogues_of(used)
    values, lines = values | dialogue_values, lines + dialogue_lines
    left_out = [_place(places, number) | {"why": fault.what} for number, fault in problems]
    values |= {name: some for name, some in (("skipped", left_out), ("notes", list(source.notes))) if some}
    token_values, token_lines, cut = _tokens_of(checked)
    findings, repeated = _findings(checked, counts, cut)
    values |= token_values | repeated
    values["findings"] = [
        {"what": finding.what, "what_to_do": finding.remedy, "rows": len(finding.numbers)}
        | {"places": [_place(places, number) for number in finding.numbers]}
        for finding in findings
    ]
    return values, lines + token_lines + _finding_lines(findings, places)


def _place(places: Places, number: int) -> dict[str, object]:
    return {places.noun: number} | ({"where": places.one(number)} if places.names else {})


def _finding_lines(findings: Sequence[Finding], places: Places) -> list[str]:
    lines = []
    for finding in findings:
        count = counted(len(finding.numbers), "row")
        where = f" ({count}: {_named(finding, places)})" if finding.numbers else ""
        lines += [f"  likely: {finding.what}{where}", f"    what to do: {finding.remedy}"]
    return lines


def _named(finding: Finding, places: Places) -> str:
    if not finding.firsts:
        return places.names_of(finding.numbers)
    pairs = list(zip(finding.numbers, finding.firsts, strict=True))
    more = len(pairs) - SHOWN_PROBLEMS
    words = [f"{places.one(number)} as {places.one(first)}" for number, first in pairs[:SHOWN_PROBLEMS]]
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _findings(
    checked: Checked, counts: Mapping[str, int] | None, cut: Sequence[int]
) -> tuple[list[Finding], dict[str, object]]:
    """Return what is probably not meant, and the values of repeated texts."""
    rows, numbers, places = checked.used[: checked.own], checked.numbers, checked.source.places
    texts = [row.text if isinstance(row, Row) else row.prompt for row in rows]
    answers = [row.label if isinstance(row, Row) else row.completion for row in rows]
    whole = [row.text if isinstance(row, Row) else row.prompt + row.completion for row in rows]
    # Without a prompt, only the completion tells one row from another.
    repeats = repeats_of([text or f"\0{answer}" for text, answer in zip(texts, answers, strict=True)], answers, numbers)
    findings = [] if counts is None else findings_of_labels(counts)
    findings += findings_of_texts(whole, numbers, checked.data)
    findings += findings_of_repeats(repeats)
    if checked.max_tokens is not None:
        findings += findings_of_lengths(cut, len(rows), checked.max_tokens)
    values: dict[str, object] = {
        name: [_place(places, number) | {"first": _place(places, first)} for number, first in pairs]
        for name, pairs in (("duplicates", repeats.same), ("contradictions", repeats.other))
    }
    if checked.labels is None:
        values["empty_prompts"] = texts.count("")
    return findings, values


def _tokens_of(checked: Checked) -> tuple[dict[str, object], list[str], list[int]]:
    """Return how long the rows are in tokens, how many were cut, and which special tokens stand in how many of them.

    Returns:
        The same as values and as lines of text; and the numbers of the source's own rows that were cut.
    """
    loaded = checked.loaded
    if loaded is None or checked.max_tokens is None:
        return {}, [], []
    counts = [len(ids) for ids in loaded.rows.tokens]
    lengths = lengths_of(counts)
    full = sum(count >= checked.max_tokens for count in counts)
    cut = [number for number, is_cut in zip(checked.numbers, loaded.cut, strict=False) if is_cut]
    values: dict[str, object] = {
        "tokens_median": lengths.median,
        "tokens_95_percent": lengths.percentile_95,
        "tokens_max": lengths.longest,
        "rows_at_max_tokens": full,
        "cut_rows": [_place(loaded.places, number) for number in cut],
        "cut_texts": loaded.cut_texts,
        "special_tokens": dict(checked.special),
    }
    spread = f"median {lengths.median}, 95 % have at most {lengths.percentile_95}, longest {lengths.longest}"
    lines = [f"  tokens: {spread}; {full} rows reach the limit of {checked.max_tokens}"]
    if cut:
        lines.append(f"  {counted(len(cut), 'row')} lost tokens at that limit: {loaded.places.names_of(cut)}")
    if loaded.cut_texts:
        lines.append(f"  {counted(loaded.cut_texts, 'row')} so long that only a part of the text was tokenised")
    lines += [
        f"  special token {token} stands in {counted(count, 'row')}: the model reads it as that token, not as text"
        for token, count in checked.special.items()
    ]
    return values, lines, cut
