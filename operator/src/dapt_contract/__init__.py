"""What operator and trainer say to each other: files, messages, exit codes and the one stop rule.

Needs pydantic and the standard library only, so that both sides, and any tool of a user's, can read it.
"""

from dapt_contract.version import PRODUCT_VERSION

__all__ = ["PRODUCT_VERSION"]
