"""``covey-edge profile``: measures this device, saves the profile, publishes it."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime import output
from edge_runtime.errors import ConfigError, NetworkError, ProtocolError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import ProfileMessage
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import check_profile, encode_profile
from edge_runtime.protocol.profile_text import profile_text
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    import argparse

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.network.mqtt import MqttTransport
    from edge_runtime.protocol.profile import Profile, Rates
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_profile_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``profile``."""
    profile = commands.add_parser("profile", help="measure this device", description=run_profile.__doc__)
    profile.add_argument("--bundle", type=Path, help="whose graphs (default: the device's current bundle)")
    profile.add_argument("--config", type=Path, metavar="edge.toml", help="keep the profile, and tell the server")
    profile.add_argument("--sustain", metavar="10m", help="also run the whole model for this long: thermal load")
    profile.add_argument("--shapes", metavar="1x16,8x32", help="batch sizes × tokens (default: a few)")
    profile.add_argument(
        "--seconds", type=float, default=2.0, help="for each graph and shape (default: %(default)s), at least 5 runs"
    )
    profile.add_argument("--threads", type=int, help="threads of one operator (default: the configuration's)")
    profile.add_argument("--board", help="name of the board's folder in device_profiles (default: as recognised)")
    profile.add_argument("--output", type=Path, metavar="FILE", help="write the profile to this file too")
    profile.add_argument("--no-publish", action="store_true", help="do not connect to the broker")
    output.add_format(profile)
    profile.set_defaults(run=run_profile)


def run_profile(args: argparse.Namespace) -> int:
    """Time every graph of a bundle on this device, with memory, heat, power, rates and link.

    Each graph runs in a process of its own. With --config the profile is kept in the state directory and published,
    retained.
    """
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.bundle.folder import open_bundle, verify_files
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.provider_trial import try_providers
    from edge_runtime.engines.providers import CPU_ONLY
    from edge_runtime.files.atomic import write_atomically
    from edge_runtime.profiling.measure import ProfileOptions, measure_profile
    from edge_runtime.store.store import Store

    config = read_edge_config(args.config) if args.config else None
    options = ProfileOptions(
        threads=args.threads if args.threads is not None else config.threads if config is not None else 0,
        shapes=_shapes(args.shapes),
        seconds=args.seconds,
        sustain_s=duration_s(args.sustain) if args.sustain else 0.0,
        board=_board(args.board),
        device=None if config is None else config.name,
        providers=CPU_ONLY if config is None else config.execution_providers,
    )
    try_providers(Engines(providers=options.providers))
    store = None if config is None else Store(Path(config.state_dir))
    bundle = open_bundle(args.bundle or _current_bundle(store))
    verify_files(bundle)
    transport = None if config is None or args.no_publish else _connect(config)
    published = False
    try:
        profile = measure_profile(
            bundle,
            options,
            measure_link=lambda rates: rates if config is None else _link(rates, config, transport, bundle.manifest),
            progress=lambda done, total, what: print(f"[{done}/{total}] {what}", file=sys.stderr),
        )
        for doubt in check_profile(profile):
            _LOG.warning("%s", doubt)
        data = encode_profile(profile)
        for path in ([args.output] if args.output else []) + ([store.root / PROFILE_FILE] if store else []):
            write_atomically(path, data)
        if config is not None and config.signing is not None:
            _LOG.warning("the profile is saved; covey-edge run sends it, signed, when it next announces the device")
        elif transport is not None and config is not None:
            published = transport.deliver(*profile_message(config, profile))
            if not published:
                _LOG.warning("the broker did not accept the profile; it is saved")
    finally:
        if transport is not None:
            transport.close()
    values = {"profile": msgspec.to_builtins(profile), "published": published}
    output.emit(args, values, profile_text(profile))
    return 0


def profile_message(config: EdgeConfig, profile: Profile) -> tuple[str, bytes]:
    """Return topic and payload of a device's profile, which the broker must retain."""
    message = ProfileMessage(device=config.name, profile=profile)
    return topic_for(config.fleet, config.name, "profile"), encode_message(message)


def duration_s(text: str) -> float:
    """Return the seconds of ``90s``, ``10m``, ``1h`` or a plain number of seconds.

    Raises:
        ConfigError: it is none of these, 0, or more than a day.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = float(found.group(1)) * _UNITS[found.group(2) or "s"] if found else 0.0
    if not 0 < seconds <= 24 * 3600:
        raise ConfigError(f"{text!r} is not a duration of up to a day", "write it as 90s, 10m or 1h")
    return seconds


def _shapes(text: str | None) -> tuple[tuple[int, int], ...]:
    parts = [] if text is None else [re.fullmatch(r"(\d{1,4})x(\d{1,5})", part.strip()) for part in text.split(",")]
    shapes = [(int(part.group(1)), int(part.group(2))) for part in parts if part is not None]
    if len(shapes) != len(parts):
        raise ConfigError(f"{text!r} are not shapes", "write batch sizes × tokens as 1x16,8x32")
    return tuple(shapes)


def _board(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        raise ConfigError(f"{name!r} cannot be the name of a board", "use lower-case letters, digits and '-'")
    return name


def _current_bundle(store: Store | None) -> Path:
    from edge_runtime.store.store import current_adapter

    current = None if store is None else current_adapter(store)
    if current is None:
        raise ConfigError("there is no bundle to measure", "give --bundle BUNDLE; this device has none of its own yet")
    return current[0]


def _connect(config: EdgeConfig) -> MqttTransport | None:
    """Open a second connection of the device; None, with a warning, if the broker cannot be reached."""
    from edge_runtime.network.address import parse_broker
    from edge_runtime.network.mqtt import MqttTransport

    identity = f"covey-{config.fleet}-{config.name}-profile"
    try:
        return MqttTransport(
            parse_broker(config.broker), identity, tls=config.tls, connect_timeout_s=config.connect_timeout_s
        )
    except NetworkError as error:
        _LOG.warning("%s; the profile is kept but not published", error.what)
        return None


def _link(rates: Rates, config: EdgeConfig, transport: MqttTransport | None, manifest: Manifest) -> Rates:
    """Add the link's speeds to the rates; what cannot be measured stays None."""
    from edge_runtime.network.fetch import Fetcher, blob_base
    from edge_runtime.profiling.rates import link_down_bytes_per_s, link_up_bytes_per_s

    down = up = None
    if config.server_url is not None:
        try:
            fetcher = Fetcher(blob_base("http://:8080/blobs", "", config.server_url), tls=config.tls)
            down = link_down_bytes_per_s(fetcher, manifest)
        except NetworkError as error:
            _LOG.warning("the link down is not known: %s", error.what)
    if transport is not None:
        try:
            up = link_up_bytes_per_s(transport, topic_for(config.fleet, config.name, "probe"))
        except (NetworkError, ProtocolError) as error:
            _LOG.warning("the link up is not known: %s", error.what)
    return msgspec.structs.replace(rates, link_down_bytes_per_s=down, link_up_bytes_per_s=up)
