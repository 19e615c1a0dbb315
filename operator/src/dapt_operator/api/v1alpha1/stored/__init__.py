"""What the status stores: the planner's memory (ledger, records of runs, facts of stages), and live progress."""
