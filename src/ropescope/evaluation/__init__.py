"""What an intervention does to a model: perplexity, sweeps over strengths, downstream tasks."""
