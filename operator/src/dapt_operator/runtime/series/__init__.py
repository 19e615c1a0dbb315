"""Says which series an adaptation has and reads them from its status. Writes no text, and keeps nothing."""
