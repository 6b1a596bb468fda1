"""What an operator can ask a device's model: the request goes over MQTT, and its answer is waited for."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import ConfigError, DataError, NetworkError, ProtocolError, wall
from edge_runtime.protocol.predictions import MOST_REQUEST_BYTES, TOO_LARGE
from server.errors import NoSuchDeviceError, error_of
from server.storage.registry_queries import find_device

if TYPE_CHECKING:
    from server.rounds.coordinator import Coordinator
    from server.storage.ledger import Ledger


class _Prediction(msgspec.Struct):
    """What is printed of a prediction: of a classifier's, or of a continued prompt."""

    text: str | None = None
    label: str | None = None
    probabilities: dict[str, float] = {}
    prompt: str | None = None
    completion: str | None = None

    def __post_init__(self) -> None:
        is_continued = self.prompt is not None and self.completion is not None
        if not is_continued and (
            self.completion is not None or self.text is None or self.label not in self.probabilities
        ):
            raise ValueError("a prediction has neither a label with its probability nor a completion of its prompt")


class _Answer(msgspec.Struct):
    """What an answer has at least."""

    predictions: list[_Prediction]


class PredictionOperations:
    """Asks devices that answer; see answer_server in edge.toml.

    Args:
        coordinator: knows the devices, and talks with them.
        ledger: knows the devices that are not here.
        fleet: name of the fleet.
    """

    def __init__(self, coordinator: Coordinator, ledger: Ledger, fleet: str) -> None:
        self._coordinator, self._ledger, self._fleet = coordinator, ledger, fleet

    async def predict(self, device: str, asked: dict[str, Any], patience_s: float) -> dict[str, Any]:
        """Return what a device's model answers, as its own HTTP endpoint would.

        Args:
            device: the device.
            asked: what ``POST /predict`` of the device's own endpoint takes.
            patience_s: seconds that the answer may take.

        Raises:
            NoSuchDeviceError: it has never announced itself.
            NetworkError: it is not here, is busy, does not answer in time, or was asked too much.
            ConfigError: it answers no requests, it is in quarantine, or it has no model yet.
            DataError: the request is too large, or is none that the device understands.
            CoveyError: what else the device answers.
        """
        body = json.dumps(asked, ensure_ascii=False).encode()
        if len(body) > MOST_REQUEST_BYTES:
            raise DataError(
                f"the request has {len(body)} bytes, {MOST_REQUEST_BYTES} {TOO_LARGE}", "ask for fewer texts"
            )
        self._require_answering(device)
        waiting = self._coordinator.predictions.ask(device, body, patience_s)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(waiting.answer), patience_s)
        except TimeoutError as error:
            raise self._not_answered(device, patience_s) from error
        finally:
            self._coordinator.predictions.drop(waiting)
        if answer.code != 0:
            raise error_of(answer.code, f"{device}: {answer.what}", answer.hint)
        with wall(lambda cause: ProtocolError(f"the answer of {device} cannot be read: {cause}", "update Covey on it")):
            msgspec.json.decode(answer.body, type=_Answer)
            return msgspec.json.decode(answer.body, type=dict[str, Any])

    def _require_answering(self, device: str) -> None:
        known = self._coordinator.devices.get(device)
        if known is None or known.birth is None:
            row = find_device(self._ledger, self._fleet, device)
            if row is None:
                raise NoSuchDeviceError(self._fleet, device)
            raise NetworkError(f"{device} is not here: {row.state}", "see: covey device list")
        if known.quarantine is not None:
            raise ConfigError(f"{device} is in quarantine: {known.quarantine}", f"see: covey device release {device}")
        if not known.is_here:
            raise NetworkError(f"{device} is not here: {known.state}", "see: covey device list")
        if known.birth.predicts is not True:
            raise ConfigError(
                f"{device} answers no requests for predictions",
                "set answer_server = true under [predict] in its edge.toml, and start it again (its Covey may also be "
                "too old for it)",
            )

    def _not_answered(self, device: str, patience_s: float) -> NetworkError:
        known = self._coordinator.devices.get(device)
        state = "gone" if known is None else known.state
        return NetworkError(
            f"{device} did not answer within {patience_s:g} s; it is {state}",
            f"give it more time (--timeout), or look into its log: covey device logs {device}",
        )
