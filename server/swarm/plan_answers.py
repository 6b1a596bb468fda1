"""What a session does with the server's plans: it trains, or says that it has, and reports until it is answered."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from edge_runtime.agent.inbox import round_and_attempt
from edge_runtime.errors import ConfigError, CoveyError
from edge_runtime.network.fetch import blob_base
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused, RoundReport, Synced
from server.swarm.answers import drawn_scalars, instant_report
from server.swarm.asked import Asked

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, Protocol

    from edge_runtime.protocol.messages import AnyMessage
    from edge_runtime.protocol.plans import Plan
    from edge_runtime.protocol.reports import ReportAck
    from edge_runtime.protocol.topics import Kind
    from server.swarm.asked import Answer
    from server.swarm.surroundings import Surroundings

    class Speaks(Protocol):
        """What the answers need of their session."""

        @property
        def broker_host(self) -> str:
            """The broker that it is connected to."""

        def send(self, kind: Kind, message: AnyMessage) -> None:
            """Publish a message."""

        def state(self, state: Literal["online", "busy"]) -> None:
            """Say what the device is doing."""

        def later(self, call: Callable[[], None]) -> None:
            """Have something called in the thread of the event loop; callable from any thread."""


_MOST_CHARACTERS = 2000
"""See PlanRefused."""


class PlanAnswers:
    """A session's plans and reports. Everything happens in the event loop's thread, but for ``Asked.goes_on``.

    Args:
        name: the device's name.
        around: what it shares with the others.
        session: sends what it answers.

    Attributes:
        adapter_sha256: of the adapter that it has; None: none, or it trains nothing.
    """

    def __init__(self, name: str, around: Surroundings, session: Speaks) -> None:
        self._name, self._around, self._session = name, around, session
        self._counts = around.counts
        self._asked: tuple[str, int, int] | None = None  # job, round and attempt of the last plan
        self._asked_at = 0.0
        self._in_training: tuple[str, int, int] | None = None
        self._report: RoundReport | None = None  # the last one: the same plan gets it again
        self._waiting: RoundReport | None = None  # a report without its answer: sent again, as devices do
        self._proved: str | None = None
        self.adapter_sha256: str | None = None

    @property
    def doing(self) -> Literal["online", "busy"]:
        """What the device is doing."""
        return "online" if self._in_training is None else "busy"

    def again(self) -> None:
        """Send the report that has no answer once more: the connection or the server is new."""
        if self._waiting is not None:
            self._session.send("report", self._waiting)

    def end(self) -> None:
        """Count what is open; nothing comes any more."""
        self._counts.lost_reports += self._waiting is not None
        self._waiting = self._asked = None

    def take_answer(self, answer: ReportAck) -> None:
        """Take in what the server says to a report."""
        if self._waiting is None or self._asked != (answer.job, answer.round, answer.attempt):
            return  # to a report that was sent twice
        self._waiting = None
        self._counts.reports[answer.outcome] += 1
        self._counts.round_trips_s.append(time.monotonic() - self._asked_at)

    def take_plan(self, plan: Plan) -> None:
        """Do what a plan says."""
        if isinstance(plan, SyncPlan):
            self._sync(plan)
        elif isinstance(plan, TrainPlan):
            self._train(plan)
        else:
            self._refuse(plan, ConfigError("a session of covey swarm answers plans of forward passes alone"))

    # -- an adapter -------------------------------------------------------------------------------------------------

    def _sync(self, plan: SyncPlan) -> None:
        self._asked = None  # a round that is being trained is over
        if self._around.training is None:
            sha256 = plan.adapter.file.sha256
            self._has(Synced(job=plan.job, round=plan.round, device=self._name, adapter_sha256=sha256, blob_bytes=0))
        else:
            self._begin(plan, lambda: True, functools.partial(self._synced, plan))

    def _synced(self, plan: SyncPlan, answer: Answer) -> None:
        if isinstance(answer, CoveyError):
            self._refuse(plan, answer)
        elif isinstance(answer, Synced):
            self.adapter_sha256 = answer.adapter_sha256
            self._has(answer)

    def _has(self, proof: Synced) -> None:
        self._counts.proved[proof.adapter_sha256] += self._proved != proof.adapter_sha256
        self._proved = proof.adapter_sha256
        self._session.send("report", proof)

    # -- a round ----------------------------------------------------------------------------------------------------

    def _train(self, plan: TrainPlan) -> None:
        self._around.on_plan(plan.round)
        asked = (plan.job, plan.round, plan.attempt)
        if asked != self._asked:
            self._counts.plans += 1
            self._counts.lost_reports += self._waiting is not None
            self._waiting = self._report = None
            self._asked, self._asked_at = asked, time.monotonic()
        accepted = PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self._name)
        if self._around.training is None:
            self._session.state("busy")
            self._session.send("report", accepted)
            self._finish(instant_report(self._name, plan, drawn_scalars(self._name, plan)))
        elif self._report is not None:
            self._finish(self._report)
        elif self._in_training != asked:
            self._in_training = asked
            self._session.state("busy")
            self._session.send("report", accepted)
            until = self._asked_at + plan.deadline_s
            self._begin(
                plan,
                lambda: self._asked == asked and time.monotonic() <= until,
                functools.partial(self._trained, plan, asked),
            )

    def _trained(self, plan: TrainPlan, asked: tuple[str, int, int], answer: Answer) -> None:
        if self._in_training == asked:
            self._in_training = None
        if isinstance(answer, CoveyError):
            self._refuse(plan, answer)
        elif not isinstance(answer, RoundReport) or self._asked != asked:
            self._counts.abandoned += 1
        else:
            self._counts.trained += 1
            self._counts.training_s += answer.seconds
            self.adapter_sha256 = answer.adapter_sha256
            self._finish(answer)
            return
        self._session.state(self.doing)

    def _finish(self, report: RoundReport) -> None:
        self._report = self._waiting = report
        self._session.send("report", report)
        self._session.state("online")

    # -- both -------------------------------------------------------------------------------------------------------

    def _begin(
        self,
        plan: TrainPlan | SyncPlan,
        goes_on: Callable[[], bool],
        then: Callable[[Answer], None],
    ) -> None:
        """Have the plan's work done in the training thread; ``then`` gets the answer in the event loop's thread."""
        training, session = self._around.training, self._session
        assert training is not None  # noqa: S101 the caller has looked
        try:
            blob_url = blob_base(plan.blob_url, session.broker_host, None)
        except CoveyError as error:
            then(error)
            return
        asked = Asked(plan, self._name, blob_url, goes_on)
        training.begin(asked, lambda answer: session.later(lambda: then(answer)))

    def _refuse(self, plan: Plan, error: CoveyError) -> None:
        self._counts.plans_refused += 1
        self._around.refusal = error.what
        index, attempt = round_and_attempt(plan)
        self._session.send(
            "report",
            PlanRefused(
                job=plan.job,
                round=index,
                attempt=attempt,
                device=self._name,
                code=error.exit_code,
                message=error.public[:_MOST_CHARACTERS],
            ),
        )
