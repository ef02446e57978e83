"""The plan: pure data that every stage shares, on the ground floor."""
