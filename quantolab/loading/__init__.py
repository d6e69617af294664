"""Components and pipelines from their folders, or in memory, quantized layer by layer."""
