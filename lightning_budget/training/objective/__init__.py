"""What the budget objective is made of: when it acts, where its numbers come from, and what its gradient does."""
