"""Renders the configuration and resources of each stage: one module a stage, named as in the contract and the trainer.

Does not decide when a stage runs. What a configuration needs of an earlier stage is an argument of its function, so
that no stage can be planned before that is known. `common` and `tuning` hold what several stages share.
"""
