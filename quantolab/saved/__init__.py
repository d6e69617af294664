"""Saved models: written so that loading quantizes nothing, loaded, verified, converted."""
