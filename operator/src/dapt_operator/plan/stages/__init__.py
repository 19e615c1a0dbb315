"""Renders the configuration of each stage: one module a stage, named as in the contract and in the trainer.

Does not decide when a stage runs.
"""
