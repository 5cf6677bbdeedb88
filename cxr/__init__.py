"""The operator's side of chest X-ray inference: the `cxr` command, and what is behind it."""

RESEARCH_ONLY = "Research use only, not for patient care."
