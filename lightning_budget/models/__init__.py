"""Treatment-response models: from features to value and cost of every treatment.

Nothing is imported here: serving takes learners from this package, and must not import TorchRec with them.
"""
