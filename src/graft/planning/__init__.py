"""What a study will cost and what it can decide, before it is run."""
