"""Recovery of a pruned model by LoRA."""
