"""The functions of standing runs: they count X-rays as they arrive, and close each day."""
