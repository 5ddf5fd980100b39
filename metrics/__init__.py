"""What a prediction is held against: exact observers and laws, scores, rule violations, and the tables made of them."""
