"""Budgets, and what was measured against them: collected by tests, printed at the end of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Table = Mapping[str, Sequence[float | None]]
"""For each figure, its budget in each environment; None: it has none."""


class OverBudgetError(AssertionError):
    """Something took more than its budget."""


@dataclass
class Budgets:
    """The budgets of one environment.

    Attributes:
        environment: its name: its file without ``.yaml``.
        expected: the most that each figure may be; what is not there has no budget.
        measured: what it was.
    """

    environment: str
    expected: dict[str, float]
    measured: dict[str, float] = field(default_factory=dict)

    def measure(self, figure: str, value: float) -> None:
        """Enter a measurement; the worst of several counts. OverBudgetError: it is more than the budget."""
        self.measured[figure] = max(value, self.measured.get(figure, value))
        most = self.expected.get(figure)
        if most is not None and value > most:
            raise OverBudgetError(f"{figure}: {value:.4g}, and the budget of {self.environment} is {most:.4g}")

    def lines(self) -> list[str]:
        """Return the table, a line each, and the same as JSON in the last line."""
        width = max(map(len, [*self.expected, *self.measured, "figure"]))
        lines = [f"{'figure':{width}}  {'budget':>8}  {'measured':>8}"]
        for figure in dict.fromkeys([*self.expected, *self.measured]):
            budget, value = self.expected.get(figure), self.measured.get(figure)
            over = "  over" if budget is not None and value is not None and value > budget else ""
            lines.append(f"{figure:{width}}  {_text(budget):>8}  {_text(value):>8}{over}")
        values = {"environment": self.environment, "budgets": self.expected, "measured": self.measured}
        return [*lines, json.dumps(values)]


def budgets_of(table: Table, environments: Sequence[str], environment: str) -> Budgets:
    """Return the budgets of an environment: its column of a table; one that has no column has none."""
    if environment not in environments:
        return Budgets(environment, {})
    column = environments.index(environment)
    budgets = {figure: row[column] for figure, row in table.items()}
    return Budgets(environment, {figure: most for figure, most in budgets.items() if most is not None})


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
