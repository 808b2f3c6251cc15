"""What will be learned, and what looks wrong with it."""
