"""Defines the metadata of a Kubernetes object, as far as dapt reads it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from dapt_operator.api.v1alpha1.base import HOST_PATTERN, Integer, LeanBase, Name


class ObjectMeta(LeanBase):
    """Metadata of a resource. The fields are Kubernetes' own; the API server sets those that users do not write."""

    name: Name
    """Name, unique in its namespace; at most 63 characters, since children carry it as a label."""
    namespace: Name | None = None
    """Namespace of the object. Absent: the caller's."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Labels of the object."""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    """Annotations of the object."""
    uid: str | None = None
    """Unique identity of this object; a new object of the same name has another one."""
    resource_version: str | None = None
    """Version of the object, for writes that must not overwrite a concurrent change."""
    generation: Integer | None = None
    """Number that grows with each change of the spec."""
    creation_timestamp: str | None = None
    """Time at which the object was created."""
    deletion_timestamp: str | None = None
    """Time at which deletion was requested."""
    deletion_grace_period_seconds: Integer | None = None
    """Seconds until deletion is forced."""
    generate_name: str | None = None
    """Prefix of a generated name."""
    self_link: str | None = None
    """No longer used by Kubernetes."""
    finalizers: tuple[str, ...] = Field(default=(), strict=False)
    """Work that must be done before the object is removed."""
    owner_references: tuple[Mapping[str, Any], ...] = Field(default=(), strict=False)
    """Objects that own this one."""
    managed_fields: tuple[Mapping[str, Any], ...] = Field(default=(), strict=False)
    """Which client wrote which field."""


class AdaptationMeta(ObjectMeta):
    """Metadata of a DomainAdaptation, whose name begins the names of Services and pods."""

    name: Annotated[str, Field(pattern=HOST_PATTERN, min_length=1, max_length=63)]
    """Name, unique in its namespace: at most 63 characters, a letter first, no dots, since children carry it as a
    label and in their host names."""
