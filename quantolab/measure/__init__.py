"""Measuring: a callable, a module or a picture in, plain figures out."""
