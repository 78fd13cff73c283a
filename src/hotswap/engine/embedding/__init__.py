"""Models that turn a text into one vector."""
