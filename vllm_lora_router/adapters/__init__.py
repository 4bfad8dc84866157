"""LoRA adapters: their files on disk, and their versions and leases while the server runs."""
