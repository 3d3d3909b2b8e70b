"""Prompts to embeddings: prompt syntax, CLIP tokens, word weights. Knows text encoders only by graph name."""

from .conditioning import conditioning_from_texts, encode, tokenize
from .given_texts import TextInput, text_inputs_from_call
from .prompt import SYNTAXES
from .tokenizer import Tokenizer, tokenizers_of

__all__ = [
    "SYNTAXES",
    "TextInput",
    "Tokenizer",
    "conditioning_from_texts",
    "encode",
    "text_inputs_from_call",
    "tokenize",
    "tokenizers_of",
]
