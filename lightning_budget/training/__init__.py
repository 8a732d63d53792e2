"""Lightning around the functional core: module, strategy, callbacks, checkpoints."""
