"""Chat templates: compiled for a tokenizer, conversations written with them as ids and a loss mask,
exported as Jinja.
"""
