"""A component from one file, as models are often published: its names, its facts, loading it."""
