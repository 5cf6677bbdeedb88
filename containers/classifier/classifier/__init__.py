"""The classifier in the container image: `handler` calls AWS; its siblings only compute."""
