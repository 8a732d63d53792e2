"""Curves and resamples as machine code. Everything here has a twin in plain torch with equal results."""
