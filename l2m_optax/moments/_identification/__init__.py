"""How `identify` works: a transformation runs on known gradients; what it keeps is matched."""
