"""What both sides use against files, texts and clients that may mean harm: bounded, cleaned, never followed."""
