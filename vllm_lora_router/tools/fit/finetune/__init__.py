"""Fine-tuning of an encoder into a sequence classifier, by contrastive training and classification."""
