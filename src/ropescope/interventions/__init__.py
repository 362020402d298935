"""Which pairs, and what is done to them: masks, expressions, controls, weighting, derotation, baking."""
