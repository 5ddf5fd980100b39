"""What a prediction or a policy is compared with.

Exact observers and laws, scores, rule violations, rivals,
and the tables made of them.
"""
