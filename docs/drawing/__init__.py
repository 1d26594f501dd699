"""The pictures of the documentation, from records of the benchmarks or from a training."""
