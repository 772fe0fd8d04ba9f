"""Smaller networks that find the same: pruning and retraining."""
