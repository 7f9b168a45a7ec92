"""Finished runs become safetensors and GGUF files."""
