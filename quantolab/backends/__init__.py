"""One folder a quantization backend; each is the only door to its library."""
