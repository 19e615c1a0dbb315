"""Contains the trainer: a program for each kind of stage, and the agent that runs it in a pod and reports how it ended."""
