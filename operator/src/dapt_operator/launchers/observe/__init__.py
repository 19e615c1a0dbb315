"""Reads Jobs and pods back into the state of a run. Pure: objects in, values out."""
