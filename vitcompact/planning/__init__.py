"""What to do to which layer: requests, candidates with their expected losses and costs, and how a budget is spent."""
