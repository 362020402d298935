"""Judge a model as it stands: perplexity, and sweeps of selections over strengths."""
