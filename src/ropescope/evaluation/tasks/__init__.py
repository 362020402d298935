"""Downstream tasks through lm-evaluation-harness, plain and changed on the same documents."""
