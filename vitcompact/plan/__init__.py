"""The plan: pure data that every stage shares, on the ground floor.

`vitcompact.plan` as an attribute is the function that makes one; this package is found by `from vitcompact.plan.schema
import ...`, and the class as `vitcompact.Plan`.
"""
