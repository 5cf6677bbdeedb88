"""The classifier that runs in the container image: `handler` does the I/O, its siblings are pure."""
