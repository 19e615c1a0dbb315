"""The resources of group dapt.dev: `DomainAdaptation` and `AdaptationProfile`, as frozen pydantic models.

The models are the one source: the CRDs, their CEL rules, the reference pages and the local validation come
from them. This package is pure: no clock, no environment, no files. Import from the modules, for example
`from dapt_operator.api.v1alpha1.spec import DomainAdaptation`.
"""
