"""JobSet beside a control plane."""

from __future__ import annotations

from contextlib import AbstractContextManager

from testcluster.control_plane import ControlPlane
from testcluster.controllers import Published, running
from testcluster.processes import Process

API_VERSION = "jobset.x-k8s.io/v1alpha2"
JOBSET = Published(
    "jobset",
    configuration={
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "internalCertManagement": {"enable": False},
    },
    flags=("--metrics-bind-address=0",),
)


def jobset(plane: ControlPlane) -> AbstractContextManager[Process]:
    """JobSet's manager at work, its CRD installed.

    Raises:
        BuildError: it is not built and cannot be.
        StartError: it does not come up; with the end of its log.
    """
    return running(JOBSET, plane)
