"""What a checkpoint, a GGUF file or a layer is, told without knowing its family."""
