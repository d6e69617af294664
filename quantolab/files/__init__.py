"""Files and folders: JSON, safetensors, and writing that happens whole or not at all.

Knows neither Quanto nor a model.
"""
