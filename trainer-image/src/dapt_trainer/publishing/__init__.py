"""What publish writes: card, manifest, destinations."""
