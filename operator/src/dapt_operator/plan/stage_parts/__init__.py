"""Holds what several stages share. A part plans no stage of its own and imports none."""
