"""What makes a completion good: checkers of its answer."""
