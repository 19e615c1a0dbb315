"""`dapt operator` runs the operator on Kubernetes: in a pod or, with a kubeconfig, on any host."""

from __future__ import annotations

from typing import NoReturn

from kubernetes import config
from kubernetes.client import Configuration

from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.runtime import logging_setup
from dapt_operator.runtime.errors import BadSettingError, PortTakenError
from dapt_operator.runtime.operator import Operator, end_process
from dapt_operator.runtime.settings import Options, Settings, make_settings


def run(options: Options) -> NoReturn:
    """Run until a signal arrives, then end the process.

    Raises:
        UserError: a setting is wrong, there is no cluster, or the port is taken.
    """
    try:
        settings = make_settings(options)
    except BadSettingError as error:
        raise UserError(error.problems, EXIT_USAGE) from None
    logging_setup.set_up(settings.log_format, settings.log_level)
    configuration = find_cluster(settings)
    try:
        code = Operator(settings, configuration).run()
    except PortTakenError as error:
        raise UserError(str(error)) from None
    end_process(code)


def find_cluster(settings: Settings) -> Configuration:
    """Return how to reach the API server: as the pod's service account, else as the kubeconfig says.

    Raises:
        UserError: there is neither of them.
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
    # The queue's threads, the resync, the Lease and the polls each hold one connection at most; urllib3 would close and
    # reopen connections beyond its pool.
    configuration.connection_pool_maxsize = settings.workers + 8
    return configuration
