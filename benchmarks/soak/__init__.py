"""What befalls a run from outside, many times over."""
