"""What thin keys cost: bytes, perplexity and time of several plans against the stock cache."""
