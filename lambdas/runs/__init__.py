"""The run protocol: jobs, predictions, counts and completion, for both functions and for cxr."""
