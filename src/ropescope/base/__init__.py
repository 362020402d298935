"""What every room knows: axes, errors, files, tables, selections, statistics, and the pure maths of entropies and pairs."""
