"""LoRA adapters of PEFT: read one, and merge it into its base model."""
