"""The planner's memory as the status stores it: the ledger, its records of runs, facts of stages, newest progress."""
