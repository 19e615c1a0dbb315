"""Defines the `fields` of tuning data: which of a record's own fields hold what an example or a pair needs."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from dapt_operator.api.v1alpha1.base import Base, Rule
from dapt_operator.api.v1alpha1.texts.text_rules import VISIBLE, TextRules

FieldName = Annotated[str, Field(min_length=1, max_length=128), TextRules(VISIBLE)]
"""Name of a field of a record."""


MAX_ROLE_CHARACTERS: Final = 128


class MessageFields(Base):
    """Which of a record's own fields hold a conversation. With any of the names given, nothing is guessed."""

    # A rule of the block: a schema has none for the names in a map.
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "roles",
            lambda fields: all(
                0 < len(name) <= MAX_ROLE_CHARACTERS and VISIBLE.holds(name) for name in fields.roles
            ),
            f"!has(self.roles) || self.roles.all(name, size(name) > 0 && size(name) <= {MAX_ROLE_CHARACTERS} &&"
            f" !name.matches('{VISIBLE.pattern}'))",
            "the name of a role is empty, longer than 128 characters, or has a character that cannot be seen, such as a"
            " control or direction mark; write it again without that",
        ),
    )

    messages: FieldName | None = None
    """List of messages."""
    system: FieldName | None = None
    """Text of a system message at the beginning."""
    tools: FieldName | None = None
    """Tools that the assistant may call."""
    role: FieldName | None = None
    """Field of a message that names its author. Absent: role."""
    content: FieldName | None = None
    """Field of a message that holds its text. Absent: content."""
    roles: Annotated[dict[str, Literal["system", "user", "assistant", "tool"]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """What the records call a role -> system, user, assistant or tool, as in {human: user, gpt: assistant}."""


class InstructionFields(MessageFields):
    """Which of a record's own fields hold an example: messages, or prompt and response."""

    prompt: FieldName | None = None
    """Text of the user."""
    input: FieldName | None = None
    """Text that follows the prompt after an empty line, where it is not empty."""
    response: FieldName | None = None
    """Text of the assistant, which is learned."""


class PreferenceFields(MessageFields):
    """Which of a record's own fields hold a pair: chosen and rejected, and the prompt or the messages before them."""

    prompt: FieldName | None = None
    """Text or messages that both answers follow."""
    input: FieldName | None = None
    """Text that follows the prompt after an empty line, where it is not empty."""
    chosen: FieldName | None = None
    """The better answer."""
    rejected: FieldName | None = None
    """The worse answer."""
