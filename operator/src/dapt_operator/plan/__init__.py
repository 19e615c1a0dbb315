"""The planner: facts in, plan out. Pure: no clock, no client, no files, no environment, no randomness.

Read in this order: `observed` (what is known), `ledger/update` (what the ledger keeps of it), `chain` (the states, what
each does and the stage it renders), `transitions` (which state or action follows which fact), `decide` (the plan),
`status/build` (what the status reports).
"""
