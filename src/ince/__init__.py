"""ince fine-tunes large language models with LoRA and QLoRA, and proves what came out."""
