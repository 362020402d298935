"""Where bands live: in which layers, at which pair indices and wavelengths, with rotation and without."""
