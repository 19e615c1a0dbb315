"""`dapt operator`: the operator on Kubernetes, in a pod or, with a kubeconfig, on any host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from kubernetes import config
from kubernetes.client import Configuration

from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.runtime import logging_setup
from dapt_operator.runtime.http_server import PortTakenError
from dapt_operator.runtime.operator import Service, end_process
from dapt_operator.runtime.settings import BadSettingError, Settings, make_settings


def run(
    *,
    namespaces: Sequence[str],
    instance: str | None,
    lease_namespace: str | None,
    lease_name: str | None,
    port: int,
    workers: int,
    resync_seconds: float,
    log_format: str,
    log_level: str,
) -> NoReturn:
    """Run until a signal, and end the process.

    Raises:
        UserError: it cannot begin.
    """
    try:
        settings = make_settings(
            namespaces=namespaces,
            instance=instance,
            lease_namespace=lease_namespace,
            lease_name=lease_name,
            port=port,
            workers=workers,
            resync_seconds=resync_seconds,
            log_format=log_format,
            log_level=log_level,
        )
    except BadSettingError as error:
        raise UserError(error.problems, EXIT_USAGE) from None
    logging_setup.set_up(settings.log_format, settings.log_level)
    configuration = find_cluster(settings)
    try:
        code = Service(settings, configuration).run()
    except PortTakenError as error:
        raise UserError(str(error)) from None
    end_process(code)


def find_cluster(settings: Settings) -> Configuration:
    """How to reach the API server: as the pod's service account, else as the kubeconfig says.

    Raises:
        UserError: there is neither.
    """
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"no cluster to work in: this is not a pod with a service account, and the kubeconfig cannot be used"
                f" ({str(error).rstrip('.')}); set KUBECONFIG to one that can"
            ) from None
    # The queue's threads, the resync, the Lease and the live readings each hold a connection at most.
    configuration.connection_pool_maxsize = settings.workers + 8
    return configuration
