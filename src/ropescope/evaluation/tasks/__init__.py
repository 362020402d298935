"""Downstream tasks through lm-evaluation-harness, plain and weighted on the same documents."""
