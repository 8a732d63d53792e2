"""Which user gets which incentive under a budget, learned end to end."""

import logging

# TorchRec asks torch.fx at import whether it is tracing, and the remark this draws is for torch's own developers.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
