"""What an allocation is worth; pure functions in ``functional``, torchmetrics shells beside it."""
