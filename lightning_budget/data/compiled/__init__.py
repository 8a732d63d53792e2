"""Loops over rows of a file as machine code; each has a twin in numpy with equal results."""
