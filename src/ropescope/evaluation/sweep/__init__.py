"""Perplexity over strengths, for selections and their controls."""
