"""The models of group dapt.dev, version v1alpha1.

They check themselves alone: no module here reads files or compares two resources.
"""
