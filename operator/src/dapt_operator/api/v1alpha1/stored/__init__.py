"""The planner's memory as the status stores it: the ledger, its records of runs, the facts of stages."""
