"""The claims on a real model: SmolLM2-135M adapted by dapt itself, piece by piece. It trains nothing of its own."""
