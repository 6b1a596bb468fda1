"""Fits a job to a bundle whose folder is here: what levels need behind a frozen front is in a file of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_runtime.bundle.behind import find_behind
from edge_runtime.bundle.memory_need import behind_need
from server.job.fitted import fit_to_bundle

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from server.job.fitted import FittedJob
    from server.job.job import Job


def fit_opened(job: Job, bundle: Bundle) -> FittedJob:
    """Check that a job fits a bundle, fill in what it leaves open, and find what its levels need.

    Raises:
        ConfigError: see fit_to_bundle.
        BundleError: the description of the graphs behind a split is damaged.
    """
    fitted = fit_to_bundle(job, bundle.manifest, bundle.sha256)
    if not job.frozen_rounds or job.stld is None:
        return fitted
    graphs = find_behind(bundle.path, bundle.manifest, fitted.split)
    needs = {level: behind_need(bundle.manifest, graph) for level, graph in graphs.items() if level in fitted.levels}
    return dataclasses.replace(fitted, behind=needs)
