"""``edge.toml``: the device's configuration, checked when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edge_runtime.bundle.manifest import Runtime
from edge_runtime.bundle.stack import MOST_ADAPTERS
from edge_runtime.data.config import CORRECTIONS, DataConfig
from edge_runtime.data.transform import beside
from edge_runtime.device.eligibility import EligibilityRules
from edge_runtime.engines.providers import CPU_ONLY, check_provider_names
from edge_runtime.files.toml_file import read_toml
from edge_runtime.fronts.front_folder import DEFAULT_MB
from edge_runtime.fronts.front_key import Precision
from edge_runtime.network.address import TlsFiles
from edge_runtime.network.http_address import check_http_url
from edge_runtime.predictions.rules import PredictRules
from edge_runtime.signing.key_files import DeviceKeys
from edge_runtime.values import Name, Strict

if TYPE_CHECKING:
    from pathlib import Path


class UpdateRules(Strict, frozen=True):
    """``[updates]``: what a new version must pass here before it is used, and when the model in use is said to fall.

    Attributes:
        own_rows: a file of rows that the device never trains on, written as that of [data]; relative to the
            configuration file. None: a new version is not compared on rows, and the model in use is not measured.
        largest_accuracy_loss: by how much a new version may be less accurate on them than the one in use, 0 to 1.
        largest_fall: by how much the model in use may be less accurate on them than it was at its best, 0 to 1.
    """

    own_rows: str | None = None
    largest_accuracy_loss: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    largest_fall: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05


class ForwardRules(Strict, frozen=True):
    """``[forward]``: how forward-only steps are computed (docs/algorithm.md).

    Attributes:
        adapters_per_call: perturbed adapters that one call of the back block takes; a direction has two, one of each
            sign. ``auto``: as many as the device's profile found to be quickest; 1 without a profile.
    """

    adapters_per_call: Literal["auto"] | Annotated[int, msgspec.Meta(ge=1, le=MOST_ADAPTERS)] = "auto"


class FrontRules(Strict, frozen=True):
    """``[fronts]``: what the device keeps of jobs that freeze the front (docs/algorithm.md).

    Attributes:
        cache_mb: bound of the rows' activations on disk, in millions of bytes; 0: each is computed anew. Where those of
            a round do not fit, the front stays in memory while the round trains.
        precision: in which they are kept; float16 needs half the space, and rounds them.
    """

    cache_mb: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = DEFAULT_MB
    precision: Precision = "float32"


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Configuration of one device.

    Attributes:
        name: the device's name, unique in its fleet.
        broker: ``mqtt://host[:1883]`` or ``mqtts://host[:8883]``, with ``user:password@`` if needed; the nodes of a
            cluster with commas: ``mqtt://a:1883,b:1883``.
        data: the private rows.
        fleet: name of the fleet.
        tags: what jobs can name the device by, beside its name: ``devices = "tag:kitchen"`` in job.toml.
        state_dir: bundles, adapters and the journal; relative to the configuration file.
        threads: threads of one operator; 0: as many as may run at once.
        engine: the runtime that runs the graphs; it is never replaced by another one.
        execution_providers: what ONNX Runtime runs them on, the first that can: see engines/providers.py. One that is
            missing is an error, and none is used that is not among them.
        server_url: base address of the server's HTTP side; None: the one that the server names in its plans.
        connect_timeout_s: how long the first connection to the broker may take.
        tls: certificate files, for ``mqtts``.
        training: ``auto``: with backpropagation if a job asks for it and memory allows; or ``forward-only``.
        least_noise_multiplier: train only in jobs whose [privacy] has at least this noise_multiplier; None: in all.
        eligibility: when the device may train.
        updates: what a new version must pass before it is used.
        predict: what answers texts on this device, and takes corrections.
        fronts: what it keeps of jobs that freeze the front.
        forward: how forward-only steps are computed.
        signing: keys; with them every message is signed, and only signed ones are believed. None: none is.
    """

    name: Name
    broker: str
    data: DataConfig
    fleet: Name = "default"
    tags: Annotated[list[Name], msgspec.Meta(max_length=32)] = []
    state_dir: str = "covey-state"
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    engine: Runtime = "onnxruntime"
    execution_providers: tuple[str, ...] = CPU_ONLY
    server_url: str | None = None
    connect_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    tls: TlsFiles | None = None
    training: Literal["auto", "forward-only"] = "auto"
    least_noise_multiplier: Annotated[float, msgspec.Meta(ge=0)] | None = None
    eligibility: EligibilityRules = EligibilityRules()
    updates: UpdateRules = UpdateRules()
    predict: PredictRules = PredictRules()
    fronts: FrontRules = FrontRules()
    forward: ForwardRules = ForwardRules()
    signing: DeviceKeys | None = None

    @property
    def backpropagates(self) -> bool:
        """Whether the owner allows backpropagation."""
        return self.training == "auto"

    @property
    def own_rows(self) -> DataConfig | None:
        """How the rows that the device never trains on are read, without corrections; None: there are none."""
        path = self.updates.own_rows
        return None if path is None else msgspec.structs.replace(self.data, path=path, corrections="")


def read_edge_config(path: Path) -> EdgeConfig:
    """Read ``edge.toml``; its relative paths become relative to the file's folder.

    Raises:
        ConfigError: see read_toml; or server_url is not an address that requests can be sent to; or see
            check_provider_names.
    """
    config = read_toml(path, EdgeConfig)
    check_provider_names(config.execution_providers, config.engine)
    if config.server_url is not None:
        check_http_url(config.server_url)
    base = path.resolve().parent
    changes: dict[str, Any] = {
        "state_dir": str(base / config.state_dir),
        "data": msgspec.structs.replace(
            config.data,
            path=str(base / config.data.path),
            corrections=str(base / (config.data.corrections or CORRECTIONS)),
            transform=beside(config.data.transform, base),
        ),
    }
    if config.updates.own_rows is not None:
        own_rows = str(base / config.updates.own_rows)
        changes["updates"] = msgspec.structs.replace(config.updates, own_rows=own_rows)
    if config.predict.token_file is not None:
        token_file = str(base / config.predict.token_file)
        changes["predict"] = msgspec.structs.replace(config.predict, token_file=token_file)
    if config.tls is not None:
        files = {field: value and str(base / value) for field, value in msgspec.structs.asdict(config.tls).items()}
        changes["tls"] = TlsFiles(**files)
    if config.signing is not None:
        keys = config.signing
        changes["signing"] = DeviceKeys(str(base / keys.key_file), str(base / keys.server_key_file))
    return msgspec.structs.replace(config, **changes)
