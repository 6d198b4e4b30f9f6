"""Techniques that press in several ways at once, in one training."""
