"""The operator: a pure planner, launchers, and the shells that carry its plans out."""
