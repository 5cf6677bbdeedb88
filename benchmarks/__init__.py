"""What is measured, side by side with the original's way."""
