"""How the demo models are made: their texts, tokenizer, training and scores."""
