"""What every room knows: axes, errors, files, tables, selections, statistics, and the maths of entropies and pairs."""
