"""LoRA adapters of PEFT: read one, merge it into its base model, or write it to a GGUF file of its own."""
