"""Remembers which bundles were tried on this device, and with which libraries: each combination is tried once."""

from __future__ import annotations

import logging
from importlib import metadata
from typing import TYPE_CHECKING, cast

import msgspec

from edge_runtime import __version__
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.engines.trial import processor, runtime_version, try_bundle
from edge_runtime.errors import ConfigError, CoveyError, StorageError
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.checked import decode_checked, encode_checked
from edge_runtime.files.document import read_document

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.choose import Engines

_LOG = logging.getLogger(__name__)
TRIALS_FILE = "trials.json"
_KEPT = 64


class Combination(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a trial's result depends on.

    Attributes:
        bundle_sha256: the bundle.
        runtime: the name of the runtime.
        runtime_version: its version.
        tokenizers_version: the version of the tokenizers library.
        processor: the kind of processor: see trial.processor.
        covey_version: the version of Covey.
        execution_providers: what ONNX Runtime runs on; left out of the file where that is the processor alone.
    """

    bundle_sha256: str
    runtime: str
    runtime_version: str
    tokenizers_version: str
    processor: str
    covey_version: str
    execution_providers: tuple[str, ...] = CPU_ONLY


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trial that failed.

    Attributes:
        combination: what was tried.
        what: the error's text.
        hint: what to do about it.
        exit_code: the error's exit code.
    """

    combination: Combination
    what: str
    hint: str
    exit_code: int


class Trials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The trials of a device.

    Attributes:
        passed: the combinations that passed, the newest last.
        failed: the last trial, if it failed; None: it passed, or there has been none.
    """

    passed: list[Combination] = []
    failed: Failure | None = None


def read_trials(root: Path) -> Trials:
    """Return the trials that a state directory remembers; none where there is no file.

    Raises:
        StorageError: the file cannot be read, or it is damaged.
    """
    path = root / TRIALS_FILE

    def damaged(cause: str) -> StorageError:
        return TrialsDamagedError(f"{path} is damaged: {cause}", "start covey-edge run: bundles are tried again")

    found = read_document(path, lambda data: cast("Trials", decode_checked(data, type=Trials)), damaged)
    return Trials() if found is None else found


class TrialsDamagedError(StorageError):
    """The file of the trials says nothing."""


def require_trial(root: Path, bundle: Bundle, engines: Engines) -> None:
    """Try a bundle in a child process, unless it has passed on this device with the same libraries and processor.

    Args:
        root: the state directory, which remembers the result.
        bundle: the bundle.
        engines: the runtime; this process does not load it.

    Raises:
        CoveyError: see try_bundle; or StorageError: the result cannot be kept.
    """
    trials, combination = _known(root), _combination(bundle, engines)
    if combination in trials.passed:
        return
    _LOG.info("trying bundle %s on %s, in a process of its own", bundle.sha256[:12], engines.name)
    try:
        parity = try_bundle(bundle.path, engines)
    except CoveyError as error:
        failure = Failure(combination, error.what, error.hint, error.exit_code)
        try:
            _write(root, Trials(trials.passed, failure))
        except StorageError as unwritten:  # the trial's own error is the one to say
            _LOG.warning("the trial's result is not kept: %s", unwritten)
        raise
    _LOG.info("bundle %s is good here: its loss is within %.1e of PyTorch's", bundle.sha256[:12], parity.loss)
    _write(root, Trials([*trials.passed, combination][-_KEPT:], None))


def _combination(bundle: Bundle, engines: Engines) -> Combination:
    try:
        tokenizers_version = metadata.version("tokenizers")
    except metadata.PackageNotFoundError as error:
        raise ConfigError("tokenizers is not installed", "pip install tokenizers") from error
    return Combination(
        bundle_sha256=bundle.sha256,
        runtime=engines.runtime,
        runtime_version=runtime_version(engines.runtime),
        tokenizers_version=tokenizers_version,
        processor=processor(),
        covey_version=__version__,
        execution_providers=engines.providers,
    )


def _known(root: Path) -> Trials:
    try:
        return read_trials(root)
    except TrialsDamagedError as error:
        set_aside(root / TRIALS_FILE, error.what)
        return Trials()


def _write(root: Path, trials: Trials) -> None:
    write_atomically(root / TRIALS_FILE, encode_checked(trials))
