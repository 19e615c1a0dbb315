"""Rules about one text, checked in Python by `dapt lint` and the operator, and by the API server in CEL.

A rule is one regular expression that both understand: Go's and Python's agree on what is used here, which has neither
backslashes nor lookaround. The schema's own `pattern` cannot say what is wrong, nor exclude anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from dapt_contract.untrusted.printable import INVISIBLE, JOINERS, SELECTORS, character_class
from dapt_operator.api.quantity import is_quantity, parse_quantity

_JOINER: Final = character_class(JOINERS)
_SELECTOR: Final = character_class(SELECTORS)
_WIDE_SPACE: Final = "\\u00a0\\u1680\\u2000-\\u200a\\u202f\\u205f\\u3000"
_HIDDEN: Final = (
    f"[\\u0009-\\u000a\\u2028-\\u2029{character_class(INVISIBLE)}]"
    f"|[{_JOINER}][{_JOINER}{_SELECTOR}]|[{_SELECTOR}][{_SELECTOR}]"
    f"|^[{_WIDE_SPACE}]|[{_WIDE_SPACE}]$"
)
"""What no name has: a terminal obeys it, or shows a text as another one. As escapes of CEL and Python.

Tabs, line breaks, spaces at an end that are not the usual one, and what `printable` takes out: a name that has it would
be shown as the name without it."""


@dataclass(frozen=True)
class TextRule:
    """What a text must match, or must not.

    Attributes:
        pattern: regular expression that is searched for. `re` and CEL both read `\\uXXXX` and `\\UXXXXXXXX` as the
            character.
        message: what is wrong and what to do.
        is_required: whether the text must match; else it must not.
        scheme: addresses that the rule is about; empty: every text.
        on_cluster_only: whether a local run is free to break it.
    """

    pattern: str
    message: str
    is_required: bool = False
    scheme: str = ""
    on_cluster_only: bool = False

    def holds(self, text: str) -> bool:
        """Return whether a text keeps the rule."""
        if self.scheme and not text.startswith(f"{self.scheme}://"):
            return True
        return (re.search(self.pattern, text) is not None) is self.is_required

    @property
    def cel(self) -> str:
        """Return the same in CEL, with `self` as the text."""
        found = f"self.matches('{self.pattern}')"
        if not self.is_required:
            found = f"!{found}"
        return f"!self.startsWith('{self.scheme}://') || {found}" if self.scheme else found


@dataclass(frozen=True)
class AmountRule:
    """A limit of a quantity, which may be written as a whole number or as a text.

    To the API server's estimate of costs such a value is as long as a whole request, and a regular expression over
    that costs more than a rule may. Comparing quantities does not.

    Attributes:
        message: what is wrong and what to do.
        below: quantity that the value must be less than; empty: `above` is given.
        above: quantity that the value must be greater than; empty: `below` is given.
    """

    message: str
    below: str = ""
    above: str = ""
    on_cluster_only: bool = False

    def holds(self, text: str) -> bool:
        """Return whether a quantity keeps the rule; what is none breaks the pattern, and is reported for that."""
        if not is_quantity(text):
            return True
        amount = parse_quantity(text)
        return amount < parse_quantity(self.below) if self.below else amount > parse_quantity(self.above)

    @property
    def cel(self) -> str:
        """Return the same in CEL, with `self` as the number or text."""
        comparison = "isLessThan" if self.below else "isGreaterThan"
        limit = self.below or self.above
        return f"!isQuantity(string(self)) || quantity(string(self)).{comparison}(quantity('{limit}'))"


class TextRules:
    """Rules of a field, as part of its annotation."""

    def __init__(self, *rules: TextRule | AmountRule) -> None:
        self.rules = rules

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Add the rules to the schema of the text."""
        rules = [{"rule": rule.cel, "message": rule.message} for rule in self.rules]
        return {**handler(schema), "x-kubernetes-validations": rules}

    def broken(self, text: str, *, local: bool) -> str | None:
        """Return the message of the first rule that a text breaks; None when it keeps all. local: of a local run."""
        rules = (rule for rule in self.rules if not (local and rule.on_cluster_only))
        return next((rule.message for rule in rules if not rule.holds(text)), None)


VISIBLE: Final = TextRule(
    _HIDDEN,
    "has a character that cannot be seen, such as a control or direction mark; write it again without that",
)
"""Holds for every text of a spec that names something."""


class WholeOrText:
    """Lets the schema of a quantity take a whole number too, as part of its annotation."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema of the text without its type."""
        of_text = {name: value for name, value in handler(schema).items() if name != "type"}
        return {**of_text, "minimum": 0, "x-kubernetes-int-or-string": True}


def rules_of(field: FieldInfo) -> TextRules | None:
    """Return the rules of a field, also of one that may be absent; None for a field without any."""
    return _first(field.metadata) or _first(_annotations(field.annotation))


def _first(metadata: Iterable[Any]) -> TextRules | None:
    return next((item for item in metadata if isinstance(item, TextRules)), None)


def _annotations(annotation: Any) -> Iterable[Any]:
    """Yield what `Annotated` adds to the members of a union."""
    for member in getattr(annotation, "__args__", ()):
        yield from getattr(member, "__metadata__", ())
