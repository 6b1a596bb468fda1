"""The devices of a job's open round, for its live view: each one's arm, and what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from edge_runtime.output import one_line

if TYPE_CHECKING:
    from server import events

_SHOWN_DEVICES = 15
_BY_OFFER = {
    "offered": "has not answered the offer",
    "accepted": "at work",
    "reported": "has reported",
    "refused": "refused",
    "lost": "lost",
}
_BY_STATE = {"busy": "at work", "online": "online, not at work", "lost": "lost", "offline": "offline"}


class AtWork:
    """The devices of the open round, and those that the job waits for."""

    def __init__(self) -> None:
        self._arms: dict[str, str] = {}
        self._does: dict[str, str] = {}
        self._is_done: set[str] = set()

    def restore(self, shown: dict[str, Any]) -> None:
        """Take over the open round's offers, if a job_history has them and no event told of the round yet."""
        open_now = [made for made in shown["round_list"] if made["state"] == "open"]
        if not open_now or self._does:
            return
        at = (open_now[-1]["round"], open_now[-1]["attempt"])
        arms = [arm for arm in shown.get("arm_list", ()) if (arm["round"], arm["attempt"]) == at]
        self._arms = {arm["device"]: arm["arm"] or "" for arm in arms}
        for offer in shown.get("offer_list", ()):
            if (offer["round"], offer["attempt"]) == at:
                device, detail = offer["device"], offer["detail"]
                says = _BY_OFFER[offer["state"]]
                self._does[device] = f"{says}: {detail}" if detail else says
                if offer["state"] in ("reported", "refused", "lost"):
                    self._is_done.add(device)
                if offer["level"] is not None:
                    self._arms.setdefault(device, f"level {offer['level']}")

    def opened(self, event: events.RoundOpened) -> None:
        """Begin a round."""
        self._arms = dict(event.arms)
        self._does = dict.fromkeys(event.devices, _BY_OFFER["offered"])
        self._is_done = set()

    def waits(self, event: events.Waiting) -> None:
        """Show, instead of a round, why the other devices do not train."""
        self._arms, self._is_done = {}, set()
        self._does = {**event.resting, **event.ineligible}

    def heard(self, event: events.DeviceChanged) -> None:
        """Take in what a device of the round does now."""
        if event.device in self._does and event.device not in self._is_done:
            does = _BY_STATE.get(event.state, event.state)
            self._does[event.device] = does if event.ineligible is None else f"{does}: {event.ineligible}"

    def reported(self, event: events.ReportTaken) -> None:
        """A device has reported."""
        self._does[event.device] = f"has reported, {event.seconds:.1f} s"
        self._is_done.add(event.device)

    def failed(self, event: events.OfferFailed) -> None:
        """A device will not report."""
        self._does[event.device] = f"no report: {event.reason}"
        self._is_done.add(event.device)

    def table(self) -> Table:
        """Return the table: first the devices that the round still waits for."""
        waited_for = len(self._does.keys() - self._is_done)
        table = Table(caption=self._caption(waited_for), show_header=bool(self._does))
        for column in ("device", "arm", "does"):
            table.add_column(column)
        for device in sorted(self._does, key=lambda name: (name in self._is_done, name))[:_SHOWN_DEVICES]:
            does = one_line(self._does[device])
            table.add_row(*(Text(cell) for cell in (one_line(device), self._arms.get(device, ""), does)))
        return table

    def _caption(self, waited_for: int) -> str:
        if not self._does:
            return "no round is open"
        more = len(self._does) - _SHOWN_DEVICES
        return f"waits for {waited_for} of {len(self._does)}" + (f"; {more} more are not shown" if more > 0 else "")
