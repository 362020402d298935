"""Results in, figure or page out."""
