"""Where models are made: torch, and nothing that runs in AWS."""
