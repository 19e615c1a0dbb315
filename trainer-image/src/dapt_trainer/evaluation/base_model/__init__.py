"""What is kept of the base model, which all others are compared with: no other model is measured or judged here."""
