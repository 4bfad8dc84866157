"""The subcommands of `vllm-lora-router`: one module or folder per command, and the modules that they share."""
