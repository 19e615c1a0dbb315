"""Contains the trainer: one program for each kind of stage, and the agent that runs it in a pod."""
