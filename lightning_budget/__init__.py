"""Which user gets which incentive under a budget, learned end to end."""
