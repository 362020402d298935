"""Frequency Entropy of a whole model: the pass, its reduction, the labelled result, its summary."""
