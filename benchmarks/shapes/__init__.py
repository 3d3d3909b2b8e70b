"""How the embedded model `shapes` is trained: its picture language, its tokenizer, and its networks."""
