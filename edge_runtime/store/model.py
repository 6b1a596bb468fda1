"""The model that this device predicts with: bundle, adapter and personal layers, each with the hash that names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.adapter import check_adapter, map_adapter
from edge_runtime.bundle.folder import open_named, verify_loaded
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.manifest_file import read_manifest
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.store.personal import load_personal, with_personal
from edge_runtime.store.store import current_adapter
from edge_runtime.store.versions import in_use

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime, Task
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class Named:
    """What a model is made of, before it is read.

    Attributes:
        folder: the bundle's folder, named by its hash.
        adapter: the adapter's file, named by its hash; None: the bundle's own.
        is_trained: whether training has left it; else it was rolled out.
        personal_sha256: the device's own layers; None: there are none, or they are left out.
        job: the job that they belong to; None: there was none.
    """

    folder: Path
    adapter: Path | None
    is_trained: bool
    personal_sha256: str | None = None
    job: str | None = None


def named_model(store: Store, *, trained: bool = False, shared: bool = False) -> Named:
    """Return what the model in use is made of: the version that was rolled out, else what training has left.

    Args:
        store: the state directory.
        trained: what training has left, whatever was rolled out.
        shared: leave the personal layers out; a version that was rolled out never has them.

    Raises:
        ConfigError: there is none yet.
        StorageError: the versions or the journal cannot be read.
    """
    used = in_use(store)
    if trained:
        left = current_adapter(store)
        used = None if left is None else (*left, True)
    if used is None:
        raise ConfigError("this device has no adapter yet", "let it take part in a round, or give --bundle")
    if not used[2] or shared:
        return Named(*used)
    journal = store.journal()
    return Named(*used, journal.personal_sha256, journal.job)


def open_model_bundle(store: Store, named: Named, runtime: Runtime) -> Bundle:
    """Open the bundle of a model; every file that a prediction loads is checked.

    Raises:
        BundleError: a file is missing or altered; the hint says how to mend it.
    """
    try:
        bundle = open_named(named.folder, named.folder.name)
        verify_loaded(bundle, runtime)
    except BundleError as error:
        raise _mended_by(error, store, is_trained=named.is_trained) from error
    return bundle


def model_parameters(store: Store, named: Named, bundle: Bundle) -> FloatVector:
    """Return the trainable parameters of a model, float32, (parameters,), with the personal layers in their places.

    Raises:
        BundleError: a file is missing or altered; the hint says how to mend it.
        StorageError: descriptors or memory are short.
    """
    try:
        # In a job's first round the journal names the bundle's own adapter, and no file of it was needed.
        if named.adapter is None or (not named.adapter.exists() and named.adapter.stem == bundle.initial_sha256):
            theta = bundle.initial_adapter()
        else:
            theta = map_adapter(named.adapter, total_size(bundle.manifest.parameters))
            check_adapter(theta, named.adapter.stem)
    except BundleError as error:
        raise _mended_by(error, store, is_trained=named.is_trained) from error
    if named.personal_sha256 is None:
        return theta
    return with_personal(theta, load_personal(store, named.personal_sha256, bundle, named.job or ""), bundle)


def task_in_use(store: Store) -> Task | None:
    """Return the task of the bundle that this device predicts with; None: it has none, so its labels are not known.

    Raises:
        StorageError: the versions or the journal cannot be read.
        BundleError: the bundle's manifest cannot be read.
    """
    used = in_use(store) if store.root.is_dir() else None
    return read_manifest(used[0])[0].task if used is not None and used[0].is_dir() else None


def _mended_by(error: BundleError, store: Store, *, is_trained: bool) -> BundleError:
    hint = (
        "let the device take part in a round: covey-edge run fetches again what is damaged"
        if is_trained
        else "go back with: covey-edge version rollback --config edge.toml; or roll it out again"
    )
    return BundleError(f"{error.what} (in {store.root})", hint)
