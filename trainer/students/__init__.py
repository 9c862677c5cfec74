"""Networks that can be trained as students, built by name, with the decoders and heads that methods need."""
