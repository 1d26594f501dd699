"""What every part of the package leans on: checks, trees with fixed leaves, loaders, searches."""
