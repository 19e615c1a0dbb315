"""`dapt operator` runs the operator on Kubernetes: in a pod or, with a kubeconfig, on any host."""

from __future__ import annotations

import gc
from typing import Final, NoReturn

from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.cluster.kubernetes import Connection, NoConnectionError
from dapt_operator.cluster.kubernetes.connection import service_account
from dapt_operator.cluster.kubernetes.kubeconfig import load_kubeconfig
from dapt_operator.runtime import logging_setup
from dapt_operator.runtime.allocator import keep_little
from dapt_operator.runtime.errors import BadSettingError, PortTakenError
from dapt_operator.runtime.operator import Operator, end_process
from dapt_operator.runtime.settings import Options, make_settings

GARBAGE_THRESHOLD: Final = 700
"""Python's own: the one of the command line is for processes that end soon."""


def run(options: Options) -> NoReturn:
    """Run until a signal arrives, then end the process.

    Raises:
        UserError: a setting is wrong, there is no cluster, or the port is taken.
    """
    try:
        settings = make_settings(options)
    except BadSettingError as error:
        raise UserError(error.problems, EXIT_USAGE) from None
    gc.set_threshold(GARBAGE_THRESHOLD)
    keep_little()
    logging_setup.set_up(settings.log_format, settings.log_level)
    connection = find_cluster()
    try:
        code = Operator(settings, connection).run()
    except (NoConnectionError, PortTakenError) as error:
        raise UserError(str(error)) from None
    end_process(code)


def find_cluster() -> Connection:
    """Return how to reach the API server: as the pod's service account, else as the kubeconfig says.

    Raises:
        UserError: there is neither of them.
    """
    try:
        account = service_account()
        if account is not None:
            return account
    except NoConnectionError as error:
        raise UserError(
            f"no cluster to work in: {error}; mount a token of the pod's service account"
        ) from None
    try:
        return load_kubeconfig()
    except NoConnectionError as error:
        raise UserError(
            f"no cluster to work in: this is not a pod with a service account, and the kubeconfig cannot be used"
            f" ({error}); set KUBECONFIG to one that can"
        ) from None
