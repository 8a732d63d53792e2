"""Treatment-response models: from features to value and cost of every treatment.

Nothing is imported here: serving takes heads and backbones from this package, and must not import TorchRec with them.
"""
