"""JSON schemas, and what a response_format asks for, as grammars of the library (GBNF)."""
