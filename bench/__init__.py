"""Measures hotswap beside what else serves the same checkpoints: see docs/performance.md."""
