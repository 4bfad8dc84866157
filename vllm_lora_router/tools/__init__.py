"""The subcommands of `vllm-lora-router`, one file each."""
