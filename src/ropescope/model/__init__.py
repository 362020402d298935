"""Models and texts: loading them, the seam into attention, what positions do, and what decides a forward pass."""
