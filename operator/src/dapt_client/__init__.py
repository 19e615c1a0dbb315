"""Works with adaptations in a cluster from Python, with the kubeconfig and the rights of its user.

    from dapt_client import Client

    client = Client()
    name = client.submit("my.yaml")
    status = client.wait(name)
    print(status.output.destination, client.report(name, "reports"))

The command line `dapt` does the same with the same modules. Nothing of this package prints, and every failure is raised
as a `UserError` whose sentences say what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dapt_client.errors import NoAnswerError, NotPublishedError, UserError, WaitTimeoutError

if TYPE_CHECKING:
    from dapt_client.client import Client

__all__ = ["Client", "NoAnswerError", "NotPublishedError", "UserError", "WaitTimeoutError"]


def __getattr__(name: str) -> object:
    """Import the client when it is asked for: the command line imports the errors alone, and starts at once."""
    if name == "Client":
        from dapt_client.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
