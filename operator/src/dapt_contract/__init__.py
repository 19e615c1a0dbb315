"""Defines what operator and trainer exchange: files, messages, exit codes and the stop rule.

It needs pydantic and the standard library only, so that both sides, and any tool that a user writes, can read it.
"""

from dapt_contract.version import PRODUCT_VERSION

__all__ = ["PRODUCT_VERSION"]
