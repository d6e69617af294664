"""What a model is before any weight is read: where it lies, its components, layers and bytes."""
