"""Models on a Hugging Face Hub: what was pasted, what lies there, and bringing it here.

Cache, locks, tokens, proxies and requests are huggingface_hub's own. Knows no model layout.
"""
