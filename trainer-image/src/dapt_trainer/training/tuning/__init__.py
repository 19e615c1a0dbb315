"""Fine-tuning and preference tuning: their rows, pairs and trainers, and the run that both share."""
