"""Renders the objects that every launcher shares: pod, environment, volumes, ConfigMap.

Pure: no launcher is named here.
"""
